//! PNG and JPEG images as rows of bytes.

use std::path::Path;

use image::{ImageError, ImageReader, Limits};

use crate::{DataError, rows::malformed_at};

/// Most bytes that decoding an image may take.
const MAX_BYTES: u64 = 512 << 20;

/// The pixels of an image of a given size: channels slowest, then rows, then columns; grey for one channel, red, green
/// and blue for three.
///
/// # Errors
/// A file that is missing, no PNG or JPEG, damaged, or of another size.
pub fn picture(path: &Path, [height, width]: [usize; 2], num_channels: usize) -> Result<Vec<u8>, DataError> {
    let refuse = |problem: String| malformed_at(path, "", &problem);
    let undecodable = |error: ImageError| {
        refuse(format!("cannot be read as PNG or JPEG ({error}); convert it or write it again"))
    };
    let open = || {
        let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
        reader.map_err(|source| DataError::reading(path, source))
    };
    // The header alone, before anything is decoded.
    let (w, h) = open()?.into_dimensions().map_err(undecodable)?;
    if (h as usize, w as usize) != (height, width) {
        return Err(refuse(format!(
            "is {w} x {h} pixels (width x height), the model takes {width} x {height}; resize it, or set \
             `[model] image_size`"
        )));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = open()?;
    reader.limits(limits);
    let image = reader.decode().map_err(undecodable)?;
    Ok(match num_channels {
        1 => image.to_luma8().into_raw(),
        _ => {
            let interleaved = image.to_rgb8().into_raw();
            (0..3).flat_map(|c| interleaved.iter().skip(c).step_by(3).copied()).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, RgbImage};
    use proptest::prelude::*;

    use super::*;

    fn written(image: &image::DynamicImage, name: &str) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        image.save(&path).unwrap();
        std::fs::read(&path).unwrap()
    }

    fn read(content: &[u8], size: [usize; 2], num_channels: usize) -> Result<Vec<u8>, DataError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, content).unwrap();
        picture(&path, size, num_channels)
    }

    #[test]
    fn channels_come_slowest_whatever_the_file_has() {
        let colours = RgbImage::from_raw(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let png = written(&colours.into(), "a.png");
        assert_eq!(read(&png, [1, 2], 3).unwrap(), [1, 4, 2, 5, 3, 6]);
        let grey = GrayImage::from_raw(1, 2, vec![7, 9]).unwrap();
        let png = written(&grey.into(), "a.png");
        assert_eq!(read(&png, [2, 1], 1).unwrap(), [7, 9]);
        assert_eq!(read(&png, [2, 1], 3).unwrap(), [7, 9, 7, 9, 7, 9]);
        let message = read(&png, [1, 2], 1).unwrap_err().to_string();
        assert!(message.contains("is 1 x 2 pixels (width x height), the model takes 2 x 1"), "{message}");
        assert!(
            read(b"GIF89a", [1, 1], 1).unwrap_err().to_string().contains("cannot be read as PNG or JPEG")
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn damaged_images_are_read_or_refused(at: prop::sample::Index, bit in 0..8u32, cut: prop::sample::Index) {
            let image: image::DynamicImage = RgbImage::from_fn(9, 7, |x, y| [x as u8 * 20, y as u8 * 30, 9].into()).into();
            for name in ["a.png", "a.jpg"] {
                let whole = written(&image, name);
                let mut damaged = whole.clone();
                damaged[at.index(whole.len())] ^= 1 << bit;
                for content in [&damaged[..], &whole[..cut.index(whole.len())]] {
                    prop_assert!(read(content, [7, 9], 3).map_or(7 * 9 * 3, |p| p.len()) == 7 * 9 * 3);
                }
            }
        }
    }
}
