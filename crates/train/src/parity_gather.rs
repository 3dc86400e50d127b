//! Brings what every rank of a job recorded to its first rank, where it is compared. Only messages of the job's own
//! world are used, so that this too runs over the backend under test.

use comm::Communicator;
use memory::{Arena, Span};
use runtime::RuntimeError;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::parity::{Pieces, RankRecord};

/// A record as it travels: numbers as their bits, because a record may hold what is not a number.
#[derive(Serialize, Deserialize)]
struct Packed {
    losses: Vec<u64>,
    norms: Vec<u64>,
    gradients: PackedPieces,
    states: PackedPieces,
}

type PackedPieces = Vec<(usize, String, mesh::Tile, Vec<u64>)>;

fn pack(values: &[f64]) -> Vec<u64> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn unpack(values: &[u64]) -> Vec<f64> {
    values.iter().map(|v| f64::from_bits(*v)).collect()
}

fn pack_pieces(pieces: &Pieces) -> PackedPieces {
    pieces
        .iter()
        .map(|(step, name, tile, values)| (*step, name.clone(), tile.clone(), pack(values)))
        .collect()
}

fn unpack_pieces(pieces: PackedPieces) -> Pieces {
    pieces.into_iter().map(|(step, name, tile, values)| (step, name, tile, unpack(&values))).collect()
}

/// The records of all ranks in their order, on the first rank; nothing elsewhere. Every rank calls it.
///
/// # Errors
/// A peer that is gone; memory for the records of one rank.
pub(crate) fn to_first(world: &dyn Communicator, record: RankRecord) -> Result<Vec<RankRecord>, TrainError> {
    const LENGTH: u64 = 0;
    const RECORD: u64 = 1;
    if world.rank() != 0 {
        let bytes = encode(&record);
        let arena = reserve(bytes.len())?;
        let (length, content) = (Span::new(0, 8), Span::new(64, bytes.len()));
        arena.write(length).map_err(RuntimeError::from)?.as_mut_slice::<u64>()[0] = bytes.len() as u64;
        arena.write(content).map_err(RuntimeError::from)?.as_mut_slice::<u8>().copy_from_slice(&bytes);
        for (span, tag) in [(length, LENGTH), (content, RECORD)] {
            let region = arena.read(span).map_err(RuntimeError::from)?;
            world.send(region, 0, tag).and_then(comm::Pending::wait).map_err(RuntimeError::from)?;
        }
        return Ok(Vec::new());
    }
    let mut records = vec![record];
    for from in 1..world.world_size() {
        let receive = |arena: &Arena, span, tag| -> Result<(), TrainError> {
            let region = arena.write(span).map_err(RuntimeError::from)?;
            Ok(world.recv(region, from, tag).and_then(comm::Pending::wait).map_err(RuntimeError::from)?)
        };
        let (arena, length) = (reserve(0)?, Span::new(0, 8));
        receive(&arena, length, LENGTH)?;
        let bytes = arena.read(length).map_err(RuntimeError::from)?.as_slice::<u64>()[0] as usize;
        let (arena, content) = (reserve(bytes)?, Span::new(64, bytes));
        receive(&arena, content, RECORD)?;
        records.push(decode(from, arena.read(content).map_err(RuntimeError::from)?.as_slice::<u8>())?);
    }
    Ok(records)
}

fn reserve(bytes: usize) -> Result<Arena, TrainError> {
    Ok(Arena::reserve((64 + bytes).next_multiple_of(4096)).map_err(RuntimeError::from)?)
}

fn encode(record: &RankRecord) -> Vec<u8> {
    let packed = Packed {
        losses: pack(&record.losses),
        norms: pack(&record.norms),
        gradients: pack_pieces(&record.gradients),
        states: pack_pieces(&record.states),
    };
    serde_json::to_vec(&packed).expect("names and numbers can be written")
}

fn decode(from: usize, bytes: &[u8]) -> Result<RankRecord, TrainError> {
    let packed: Packed = serde_json::from_slice(bytes).map_err(|problem| TrainError::Refused {
        reason: format!("the record of rank {from} cannot be read: {problem}"),
    })?;
    Ok(RankRecord {
        losses: unpack(&packed.losses),
        norms: unpack(&packed.norms),
        gradients: unpack_pieces(packed.gradients),
        states: unpack_pieces(packed.states),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_arrive_bit_for_bit() {
        let tile = mesh::Tile { dims: vec![], flat: Some((3, 2)) };
        let record = |rank: usize| RankRecord {
            losses: vec![rank as f64, f64::NAN],
            norms: vec![-0.0],
            gradients: vec![(1, "a".to_owned(), tile.clone(), vec![f64::MIN_POSITIVE, 1e300])],
            states: vec![],
        };
        let gathered = crate::ranks::run(3, std::time::Duration::from_secs(20), |world| {
            to_first(&*world, record(world.rank()))
        })
        .unwrap();
        assert_eq!(gathered.iter().map(Vec::len).collect::<Vec<_>>(), [3, 0, 0]);
        for (rank, got) in gathered[0].iter().enumerate() {
            assert_eq!(encode(got), encode(&record(rank)));
        }
    }
}
