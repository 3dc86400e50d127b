//! Meshes and layouts in their short form, `dp=2,tp=2;zero=3`. Only text here: what an axis splits is
//! the planner's.

use super::keys::{TABLES, set_in};
use super::load::scalar;
use super::names::nearest;
use super::source::shortened;
use super::value::{Raw, Value};
use super::{ConfigError, MeshSizes, Parallel, Source};

/// More ranks than this are a typo.
const MAX_WORLD: usize = 1 << 24;

/// Reads `dp=2,tp=2`; axes not named are 1.
///
/// # Errors
/// An unknown or repeated axis, a size of less than 1, or other text.
pub fn parse_mesh(text: &str) -> Result<MeshSizes, ConfigError> {
    axes_of_text(text, &Source::Mesh(text.into()))
}

/// Reads `dp=2,tp=2;zero=3;schedule=1f1b`: a mesh, which replaces that of `base` whole, then other keys
/// of the table `parallel`, which replace those of `base` one by one.
///
/// # Errors
/// As [`parse_mesh`], and an unknown key or a wrong value. Whether the layout suits a batch or a model is
/// for [`Config::check`](super::Config::check).
pub fn parse_layout(text: &str, base: &Parallel) -> Result<Parallel, ConfigError> {
    let place = Source::Mesh(text.into());
    let mut parts = text.split(';').map(str::trim);
    let mut parallel = base.clone();
    parallel.mesh = axes_of_text(parts.next().unwrap_or_default(), &place)?;
    for part in parts.filter(|part| !part.is_empty()) {
        let remedy = "after the mesh, write settings as ;zero=3;num_microbatches=4";
        let (key, written) = part.split_once('=').ok_or_else(|| ConfigError::Malformed {
            argument: shortened(part),
            place: place.clone(),
            remedy,
        })?;
        let key = key.trim();
        let (raw, bare) = scalar(written.trim());
        let full = format!("parallel.{key}");
        let value =
            Value { key: full, raw, place: place.clone(), bare: Some(bare), folder: Default::default() };
        set_in("parallel", key, &value, |key, value| parallel.set(key, value))?;
    }
    check_world(&parallel.mesh, &place)?;
    Ok(parallel)
}

/// The axes of `dp=2,tp=2`.
pub(super) fn axes_of_text(text: &str, place: &Source) -> Result<MeshSizes, ConfigError> {
    let mut mesh = MeshSizes::default();
    let mut given: Vec<&str> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let remedy = "write a mesh as dp=2,tp=2";
        let malformed = || ConfigError::Malformed { argument: shortened(part), place: place.clone(), remedy };
        let (axis, size) = part.split_once('=').ok_or_else(malformed)?;
        let (axis, size) = (axis.trim(), size.trim());
        if given.contains(&axis) {
            return Err(ConfigError::RepeatedAxis { axis: axis.to_string(), place: place.clone() });
        }
        given.push(axis);
        let (key, (raw, _)) = (format!("mesh.{}", shortened(axis)), scalar(size));
        let value = Value { key, raw, place: place.clone(), bare: None, folder: Default::default() };
        axis_size(&mut mesh, axis, &value)?;
    }
    check_world(&mesh, place)?;
    Ok(mesh)
}

/// The axes of `{ dp = 2, tp = 2 }`.
pub(super) fn axes_of_table(
    entries: &[(String, Raw, Source)],
    table: &Value,
) -> Result<MeshSizes, ConfigError> {
    let mut mesh = MeshSizes::default();
    for (axis, raw, place) in entries {
        let key = format!("{}.{}", table.key, shortened(axis));
        axis_size(&mut mesh, axis, &Value { key, raw: raw.clone(), place: place.clone(), ..table.clone() })?;
    }
    check_world(&mesh, &table.place)?;
    Ok(mesh)
}

/// Sets one axis.
pub(super) fn axis_size(mesh: &mut MeshSizes, axis: &str, value: &Value) -> Result<(), ConfigError> {
    let Some(size) = mesh.axis_mut(axis) else {
        let settings =
            TABLES.iter().find(|(table, _)| *table == "parallel").map_or(&[][..], |(_, keys)| keys);
        if settings.contains(&axis) && matches!(value.place, Source::Mesh(_)) {
            let remedy = "other settings go after a mesh and a semicolon, as in dp=2;zero=3";
            return Err(ConfigError::Malformed {
                argument: axis.to_string(),
                place: value.place.clone(),
                remedy,
            });
        }
        let (known, nearest) = (MeshSizes::AXES.to_vec(), nearest(axis, MeshSizes::AXES));
        let (axis, place) = (shortened(axis), value.place.clone());
        return Err(ConfigError::UnknownAxis { axis, place, nearest, known });
    };
    *size = value.count_within(1, MAX_WORLD as i64)?;
    Ok(())
}

/// Refuses a mesh of absurdly many ranks.
pub(super) fn check_world(mesh: &MeshSizes, place: &Source) -> Result<(), ConfigError> {
    if mesh.world_size() <= MAX_WORLD {
        return Ok(());
    }
    Err(ConfigError::TooLarge {
        key: "parallel.mesh",
        value: mesh.to_string(),
        place: place.clone(),
        limit_name: "the largest world",
        limit: MAX_WORLD.to_string().into(),
        remedy: "use fewer ranks",
    })
}
