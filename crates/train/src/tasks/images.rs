//! Images and their labels: IDX files, or directories with a directory of images for each class.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use data::{Column, ContentHash, DataError, ExampleWriter, Idx, picture};

use super::Known;
use super::read::cannot_write;
use crate::config::Config;
use crate::error::TrainError;

/// The images that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Height and width.
    pub size: [usize; 2],
    /// 1 or 3.
    pub num_channels: usize,
}

fn refuse(path: &Path, problem: String) -> DataError {
    DataError::Malformed { path: path.to_path_buf(), place: String::new(), problem }
}

/// Directories and files of a directory, sorted by name. Hidden ones are passed over: file managers leave them behind.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Read { path: dir.to_path_buf(), source };
    let listed = std::fs::read_dir(dir).map_err(failed)?;
    let mut paths = listed.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    paths.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    Ok(paths)
}

/// The classes of a directory: its directories, with their names.
fn classes(dir: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
    let named = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.to_owned();
        path.is_dir().then_some((name, path))
    };
    let classes: Vec<_> = entries(dir)?.into_iter().filter_map(named).collect();
    match classes.is_empty() {
        true => Err(refuse(dir, "has no directories; it needs one with images for each class".to_owned())),
        false => Ok(classes),
    }
}

fn pairs<'a>(
    images: &'a [PathBuf],
    labels: &'a [PathBuf],
) -> Result<impl Iterator<Item = (&'a PathBuf, &'a PathBuf)>, DataError> {
    if let Some(missing) = images.iter().chain(labels).find(|path| !path.exists()) {
        return Err(DataError::MissingFile { path: missing.clone() });
    }
    match images.iter().zip(labels).count() == images.len() && labels.len() == images.len() {
        true => Ok(images.iter().zip(labels)),
        false => Err(refuse(
            images.first().map_or(Path::new("data.images"), PathBuf::as_path),
            format!(
                "{} files of images and {} of labels: name an IDX file in `[data] labels` for each in `images`",
                images.len(),
                labels.len()
            ),
        )),
    }
}

/// Every label of a configuration's images.
pub(super) fn labels(config: &Config, found: &mut BTreeSet<String>) -> Result<(), TrainError> {
    let data = &config.data;
    if data.images.is_empty() {
        let remedy =
            "name IDX files or directories of images in `images`, or record files in `train`".to_owned();
        return Err(TrainError::Missing { key: "data.images", remedy });
    }
    if data.images.iter().all(|path| path.is_dir()) {
        for dir in &data.images {
            found.extend(classes(dir)?.into_iter().map(|(name, _)| name));
        }
        return Ok(());
    }
    for (_, path) in pairs(&data.images, &data.labels)? {
        let mut labels = labels_of(path)?;
        while let Some(label) = labels.next_item()? {
            found.insert(label[0].to_string());
        }
    }
    Ok(())
}

fn labels_of(path: &Path) -> Result<Idx, DataError> {
    let labels = Idx::open(path)?;
    match labels.shape.is_empty() {
        true => Ok(labels),
        false => {
            let problem = format!("holds items of shape {:?}, and labels are single bytes", labels.shape);
            Err(refuse(path, problem))
        }
    }
}

/// The hash of a file.
pub(super) fn hash(path: &Path) -> Result<ContentHash, DataError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => DataError::MissingFile { path: path.to_path_buf() },
        std::io::ErrorKind::IsADirectory => DataError::IsDirectory { path: path.to_path_buf() },
        _ => DataError::Read { path: path.to_path_buf(), source },
    };
    ContentHash::of_reader(std::fs::File::open(path).map_err(failed)?).map_err(failed)
}

/// Hashes of all files of images and labels.
pub(super) fn hashes(config: &Config, heldout: bool, parts: &mut Vec<String>) -> Result<(), DataError> {
    let data = &config.data;
    let (images, labels) = match heldout {
        false => (&data.images, &data.labels),
        true => (&data.heldout_images, &data.heldout_labels),
    };
    for path in images.iter().chain(labels) {
        if !path.is_dir() {
            parts.push(hash(path)?.to_string());
            continue;
        }
        for (name, class) in classes(path)? {
            for image in entries(&class)? {
                parts.push(format!("{name} {}", hash(&image)?));
            }
        }
    }
    Ok(())
}

/// Writes all images with their labels; returns which examples they are.
pub(super) fn write(
    images: &[PathBuf],
    labels: &[PathBuf],
    shape: Shape,
    known: &Known,
    writer: &mut ExampleWriter<'_>,
) -> Result<Range<usize>, DataError> {
    let start = writer.num_examples();
    let label_number = |path: &Path, label: &str, place: &str| {
        let number = known.number(label);
        number.ok_or_else(|| {
            let num = known.names.len();
            refuse(path, format!("{place}the label {label} is none of the {num} of training; mend it"))
        })
    };
    if images.iter().all(|path| path.is_dir()) {
        for dir in images {
            for (name, class) in classes(dir)? {
                let label = [label_number(&class, &name, "")?];
                for image in entries(&class)? {
                    let pixels = picture(&image, shape.size, shape.num_channels)?;
                    writer.push(&[Column::Bytes(&pixels), Column::Ints(&label)]).map_err(cannot_write)?;
                }
            }
        }
        return Ok(start..writer.num_examples());
    }
    for (path, of_labels) in pairs(images, labels)? {
        let (mut idx, mut labels) = (Idx::open(path)?, labels_of(of_labels)?);
        let [height, width] = shape.size;
        let fits = match (shape.num_channels, &idx.shape[..]) {
            (1, found) if found == [height, width] => true,
            (channels, found) => found == [height, width, channels],
        };
        if !fits {
            return Err(refuse(
                path,
                format!(
                    "holds images of shape {:?}, the model takes {height} x {width} in {} channels; set `[model] \
                     image_size` and `num_channels`",
                    idx.shape, shape.num_channels
                ),
            ));
        }
        if idx.num_items != labels.num_items {
            let problem = format!(
                "{} images, and {} labels in {}; give each image one",
                idx.num_items,
                labels.num_items,
                of_labels.display()
            );
            return Err(refuse(path, problem));
        }
        let mut number = 0;
        while let (Some(image), Some(label)) = (idx.next_item()?, labels.next_item()?) {
            number += 1;
            let label = [label_number(of_labels, &label[0].to_string(), &format!("item {number}: "))?];
            // Colours slowest, as models read them.
            let channels = shape.num_channels;
            let planes: Vec<u8> =
                (0..channels).flat_map(|c| image.iter().skip(c).step_by(channels).copied()).collect();
            writer.push(&[Column::Bytes(&planes), Column::Ints(&label)]).map_err(cannot_write)?;
        }
    }
    Ok(start..writer.num_examples())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_files_are_no_images_and_hidden_directories_no_classes() {
        let dir = tempfile::tempdir().unwrap();
        for class in ["cat", ".cache"] {
            std::fs::create_dir(dir.path().join(class)).unwrap();
        }
        for file in ["cat/1.png", "cat/.DS_Store", ".DS_Store"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let classes = classes(dir.path()).unwrap();
        assert_eq!(classes, [("cat".to_owned(), dir.path().join("cat"))]);
        assert_eq!(entries(&classes[0].1).unwrap(), [dir.path().join("cat/1.png")]);
    }
}
