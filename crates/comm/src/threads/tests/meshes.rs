//! Groups split from groups.

use super::*;
use crate::{Collective, CommError};

/// The members of each axis' group through `rank` in a 2 x 2 x 2 mesh (dp, tp, pp).
fn members(rank: usize, axis: usize) -> [usize; 2] {
    let bit = 1 << axis;
    [rank & !bit, rank | bit]
}

#[test]
fn a_mesh_of_groups_runs_interleaved() {
    run(8, checked(), |c, arena| {
        let rank = c.rank();
        let axes: Vec<_> = ["dp", "tp", "pp"]
            .iter()
            .enumerate()
            .map(|(a, name)| c.split(&members(rank, a), name).unwrap())
            .collect();
        let [low, high] = members(rank, 1);
        assert_eq!(axes[1].name(), format!("tp[{low},{high}]"));
        assert_eq!((axes[1].rank(), axes[1].world_size()), (rank >> 1 & 1, 2));
        for round in 0..60 {
            let len = [3, 900, 5000][round % 3];
            let spans = layout::<f64>(&[len, len, len, len]);
            spans.iter().for_each(|&span| put(&arena, span, &elements::<f64>(rank, 0..len)));
            // Everything started before anything is waited for; odd ranks wait a little later.
            let begin = |c: &dyn Communicator, span| {
                c.all_reduce(arena.write(span).unwrap(), DType::F64, Reduce::Sum).unwrap()
            };
            let mut pending: Vec<_> =
                axes.iter().zip(&spans).map(|(axis, &span)| begin(&**axis, span)).collect();
            pending.push(begin(&c, spans[3]));
            if rank % 2 == 1 && round % 10 == 0 {
                std::thread::sleep(Duration::from_micros(300));
            }
            pending.into_iter().for_each(|p| p.wait().unwrap());
            for (axis, &span) in spans[..3].iter().enumerate() {
                let [low, high] = members(rank, axis);
                let expected: Vec<f64> =
                    (0..len).map(|i| element::<f64>(low, i) + element::<f64>(high, i)).collect();
                assert_eq!(get::<f64>(&arena, span), expected, "axis {axis}");
            }
            assert_eq!(get::<f64>(&arena, spans[3]), reduced::<f64>(8, 0..len, Reduce::Sum));
        }
    });
}

#[test]
fn new_ranks_follow_the_order_of_the_members() {
    run(4, checked(), |c, arena| {
        if c.rank() == 1 {
            return; // not a member, and never called
        }
        let ring = c.split(&[3, 0, 2], "ring").unwrap();
        assert_eq!(ring.name(), "ring[3,0,2]");
        assert_eq!(ring.rank(), [1, 9, 2, 0][c.rank()]);
        let spans = layout::<i32>(&[1, 3]);
        put(&arena, spans[0], &[c.rank() as i32]);
        ring.all_gather(arena.read(spans[0]).unwrap(), arena.write(spans[1]).unwrap())
            .unwrap()
            .wait()
            .unwrap();
        assert_eq!(get::<i32>(&arena, spans[1]), [3, 0, 2]);
        // A group of a group, of one, and the same group once more.
        let pair = if ring.rank() < 2 {
            ring.split(&[1, 0], "pair").unwrap()
        } else {
            ring.split(&[2], "pair").unwrap()
        };
        assert_eq!(pair.name(), ["pair[0,3]", "", "pair[2]", "pair[0,3]"][c.rank()]);
        assert_eq!(reduce_ones(&*pair, &arena, 10).unwrap(), pair.world_size() as f32);
        let again = c.split(&[3, 0, 2], "ring").unwrap();
        assert_eq!(reduce_ones(&*again, &arena, 5000).unwrap(), 3.0);
    });
}

#[test]
fn bad_members_are_refused() {
    run(2, checked(), |c, _| {
        let other = 1 - c.rank();
        for members in [vec![], vec![other], vec![0, 0, 1], vec![0, 1, 2]] {
            assert!(matches!(c.split(&members, "x"), Err(CommError::InvalidSplit { .. })), "{members:?}");
        }
        c.barrier().unwrap();
    });
}

#[test]
fn a_member_that_does_not_split_is_named() {
    let errors = run(3, impatient(200), |c, _| {
        let error = (c.rank() != 1).then(|| c.split(&[0, 1, 2], "tp").map(drop).unwrap_err());
        std::thread::sleep(Duration::from_millis(500)); // rank 1 is there, but busy with something else
        error
    });
    for error in errors.into_iter().flatten() {
        assert_eq!(error.place().operation, Collective::Split);
        assert_eq!(&*error.place().group, "tp[0,1,2]");
        assert!(matches!(error, CommError::DeadlineExceeded { missing, .. } if missing == [1]));
    }
}
