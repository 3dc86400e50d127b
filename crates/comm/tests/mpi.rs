//! MPI against the thread backend: the same bits from every collective. The test starts itself under `mpirun`.

#![cfg(feature = "mpi")]

mod common;

use comm::store::{TcpStore, TcpStoreServer};
use comm::{Backend, Job, mpi};
use common::{every_collective, over_threads};
use memory::Arena;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// How processes of the MPI that this was built with are started, unless that is OpenMPI by `mpirun`.
const MPIRUN: &str = "PHALANX_TEST_MPIRUN";
/// Set for the processes that the test starts.
const CHILD: &str = "PHALANX_TEST_MPI_CHILD";

fn child() {
    let place = mpi::start().unwrap();
    let server = (place.rank == 0).then(|| TcpStoreServer::listen("127.0.0.1:0".parse().unwrap()).unwrap());
    let address = mpi::tell(server.map(|s| s.address().to_string()).unwrap_or_default()).unwrap();
    let job = Job {
        backend: Backend::Mpi,
        store: Arc::new(TcpStore::connect(&address, Duration::from_secs(5)).unwrap()),
        name: "test".to_owned(),
        generation: 0,
        num_processes: place.world_size,
        process: place.rank,
        ranks_per_process: 1,
        address: "127.0.0.1".parse().unwrap(),
        host: "localhost".to_owned(),
        rendezvous_deadline: Duration::from_secs(20),
        silence: Duration::from_secs(5),
        verify: true,
        direct: true,
        flight_recorder: 16,
        on_stuck: Arc::new(|words| panic!("{words}")),
    };
    let world = job.join(place.rank, Duration::from_secs(30)).unwrap();
    let ours = every_collective(world, Arena::reserve(64 << 20).unwrap());
    let expected = over_threads(place.world_size, every_collective);
    assert!(ours == expected[place.rank], "rank {} has other bits", place.rank);
    mpi::finish();
}

#[test]
fn every_collective_has_the_bits_of_the_thread_backend() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let launcher = std::env::var(MPIRUN).unwrap_or_else(|_| "mpirun --oversubscribe".to_owned());
    let (program, flags) = launcher.split_once(' ').unwrap_or((&launcher, ""));
    for n in ["1", "2", "3", "4"] {
        let mut mpirun = Command::new(program);
        // Test machines are often containers whose only user is root.
        mpirun.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1").env(CHILD, "1");
        mpirun.args(flags.split_whitespace()).args(["-n", n]).arg(std::env::current_exe().unwrap());
        let output = mpirun.output().expect("mpirun is installed");
        assert!(
            output.status.success(),
            "{n} ranks: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
