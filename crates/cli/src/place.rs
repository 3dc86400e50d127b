//! Which process of a job this is: read from the environment that a launcher, `mpirun`, `srun`, `torchrun` or
//! Kubernetes leaves. The only place where that is read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use phalanx::comm::store::{self, Store, TcpStoreServer};
use phalanx::comm::{Backend, Job};

use crate::{failure, output};

/// How long ranks wait for each other at the start, unless `PHALANX_RENDEZVOUS_SECONDS` says otherwise.
const RENDEZVOUS_SECONDS: f64 = 60.0;
/// How long a rank may be silent, unless `PHALANX_SILENCE_SECONDS` says otherwise.
const SILENCE_SECONDS: f64 = 4.0;
/// Operations that each rank remembers.
const FLIGHT_RECORDER: usize = 256;
/// Ports for jobs of Slurm, which names none: from here on, by the number of the job.
const SLURM_PORTS: u16 = 20_000;

/// How long the other processes of an MPI job have to say what they saw.
#[cfg(feature = "mpi")]
const LAST_WORDS: Duration = Duration::from_millis(800);

/// Where one looks things up: the environment, or a table in tests.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// This process's number among how many, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    process: usize,
    num_processes: usize,
    says: &'static str,
}

fn environment(key: &str) -> Option<String> {
    std::env::var(key).ok().filter(|value| !value.is_empty())
}

/// This process's place in a job; none if it was started alone.
pub fn find() -> anyhow::Result<Option<Job>> {
    let get: Lookup<'_> = &environment;
    let Some(position) = position(get)? else { return Ok(None) };
    let ranks_per_process = number(get, "PHALANX_RANKS_PER_PROCESS")?.unwrap_or(1).max(1);
    if position.num_processes == 1 && ranks_per_process == 1 {
        return Ok(None);
    }
    let backend = backend(get, &position)?;
    if !backend.is_built() {
        bail!(
            "{} says that this is process {} of {}, but this binary was built without the backend {backend}; build it \
             with `cargo build --release --features {backend}`, or unset {} to train in one process",
            position.says,
            position.process,
            position.num_processes,
            position.says
        );
    }
    if backend == Backend::Mpi && ranks_per_process > 1 {
        bail!("MPI carries one rank per process: start more processes, or use PHALANX_BACKEND=gloo");
    }
    let limit = seconds(get, "PHALANX_RENDEZVOUS_SECONDS", RENDEZVOUS_SECONDS)?;
    let host = host_name();
    let meeting = match backend {
        Backend::Gloo => meet(get, &position, limit)?,
        Backend::Mpi => meet_over_mpi(get)?,
    };
    Ok(Some(Job {
        backend,
        store: meeting.store,
        name: get("PHALANX_JOB").unwrap_or_else(|| "job".to_owned()),
        generation: number(get, "PHALANX_GENERATION")?.unwrap_or(0) as u64,
        num_processes: position.num_processes,
        process: position.process,
        ranks_per_process,
        address: meeting.address,
        host,
        rendezvous_deadline: limit,
        silence: seconds(get, "PHALANX_SILENCE_SECONDS", SILENCE_SECONDS)?,
        verify: get("PHALANX_VERIFY").is_some_and(|v| v != "0"),
        direct: get("PHALANX_DIRECT").is_none_or(|v| v != "0"),
        flight_recorder: FLIGHT_RECORDER,
        on_stuck: Arc::new(|words| {
            output::note(&format!("error: {words}"));
            std::process::exit(failure::stuck_code());
        }),
    }))
}

/// What tells this binary from another: its version and a hash of the file.
pub fn binary() -> String {
    let bytes = std::env::current_exe().and_then(std::fs::read).unwrap_or_default();
    // FNV-1a over words: it tells builds apart, and resists nobody.
    let (words, rest) = bytes.as_chunks::<8>();
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    let hash = words.iter().fold(rest.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    format!("phalanx {} ({hash:016x})", env!("CARGO_PKG_VERSION"))
}

fn number(get: Lookup<'_>, key: &str) -> anyhow::Result<Option<usize>> {
    let parse = |text: String| {
        text.trim()
            .parse()
            .map_err(|_| anyhow!("{key} is `{text}` in the environment; it must be a whole number"))
    };
    get(key).map(parse).transpose()
}

fn seconds(get: Lookup<'_>, key: &str, default: f64) -> anyhow::Result<Duration> {
    let Some(text) = get(key) else { return Ok(Duration::from_secs_f64(default)) };
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds > 0.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => bail!("{key} is `{text}` in the environment; it must be a number of seconds above 0"),
    }
}

/// Pairs of variables that hold a process's number and how many there are, in the order in which they are believed:
/// whoever started this very process comes before whoever started the launcher.
const POSITIONS: [(&str, &str); 4] = [
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
];

fn position(get: Lookup<'_>) -> anyhow::Result<Option<Position>> {
    for (rank, size) in POSITIONS {
        // A batch script of Slurm has a task number too; only a step has tasks.
        if rank == "SLURM_PROCID" && get("SLURM_STEP_ID").is_none() {
            continue;
        }
        if let (Some(process), Some(num_processes)) = (number(get, rank)?, number(get, size)?) {
            if process >= num_processes {
                bail!(
                    "{rank} is {process} and {size} is {num_processes} in the environment; ranks count from 0"
                );
            }
            return Ok(Some(Position { process, num_processes, says: rank }));
        }
    }
    Ok(None)
}

fn backend(get: Lookup<'_>, position: &Position) -> anyhow::Result<Backend> {
    let by_mpi = matches!(position.says, "OMPI_COMM_WORLD_RANK" | "PMI_RANK");
    match get("PHALANX_BACKEND").as_deref() {
        Some("gloo") => Ok(Backend::Gloo),
        Some("mpi") => Ok(Backend::Mpi),
        Some(other) => bail!("PHALANX_BACKEND is `{other}` in the environment; it must be gloo or mpi"),
        None if by_mpi && (Backend::Mpi.is_built() || !Backend::Gloo.is_built()) => Ok(Backend::Mpi),
        None => Ok(Backend::Gloo),
    }
}

/// Where the processes meet, and this host's address for the others.
struct Meeting {
    store: Arc<dyn Store>,
    address: IpAddr,
}

fn meet(get: Lookup<'_>, position: &Position, limit: Duration) -> anyhow::Result<Meeting> {
    let store = match get("PHALANX_STORE") {
        Some(address) => address,
        None => {
            let (host, port) = master(get, position)?;
            if position.process == 0 {
                let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
                // It serves until this process ends.
                TcpStoreServer::listen(any)?;
            }
            format!("tcp://{host}:{port}")
        }
    };
    let address = own_address(get, &store)?;
    Ok(Meeting { store: store::open(&store, limit)?, address })
}

/// The host and port that rank 0 serves the store at.
fn master(get: Lookup<'_>, position: &Position) -> anyhow::Result<(String, u16)> {
    if let (Some(host), Some(port)) = (get("MASTER_ADDR"), get("MASTER_PORT")) {
        let port = port
            .parse()
            .map_err(|_| anyhow!("MASTER_PORT is `{port}` in the environment; it must be a port"))?;
        return Ok((host, port));
    }
    let nodes = get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST"));
    match (nodes, number(get, "SLURM_JOB_ID")?) {
        (Some(nodes), Some(job)) if position.says == "SLURM_PROCID" => {
            Ok((first_node(&nodes), SLURM_PORTS + (job % 20_000) as u16))
        }
        _ => bail!(
            "{} says that this is process {} of {}, but not where they meet: set MASTER_ADDR and MASTER_PORT to rank \
             0's host and a free port, or PHALANX_STORE to file:DIR, tcp://HOST:PORT or etcd://HOST:PORT",
            position.says,
            position.process,
            position.num_processes
        ),
    }
}

/// The first host of a list like `node[01-04,7],other`.
fn first_node(list: &str) -> String {
    let (head, rest) = match list.split_once('[') {
        Some((head, rest)) if !head.contains(',') => (head, rest),
        _ => return list.split(',').next().unwrap_or_default().to_owned(),
    };
    let (inside, after) = rest.split_once(']').unwrap_or((rest, ""));
    let first = inside.split([',', '-']).next().unwrap_or_default();
    format!("{head}{first}{}", after.split(',').next().unwrap_or_default())
}

#[cfg(feature = "mpi")]
fn meet_over_mpi(get: Lookup<'_>) -> anyhow::Result<Meeting> {
    use phalanx::comm::mpi;
    let place = mpi::start()?;
    let address = match get("PHALANX_HOST") {
        Some(_) => own_address(get, "")?,
        None if place.is_one_host => IpAddr::V4(Ipv4Addr::LOCALHOST),
        None => default_address().context(
            "this host has no route to any other: name the address under which the others reach it with PHALANX_HOST",
        )?,
    };
    let server = match place.rank {
        0 => Some(TcpStoreServer::listen(SocketAddr::new(address, 0))?),
        _ => None,
    };
    let server = mpi::tell(server.map(|s| s.address().to_string()).unwrap_or_default())?;
    Ok(Meeting { store: store::open(&format!("tcp://{server}"), Duration::from_secs(10))?, address })
}

/// Ends what [`find`] started. An MPI process that fails says nothing to MPI, which ends the job; the others get a
/// moment to say what they saw.
pub fn end(is_fine: bool) {
    #[cfg(feature = "mpi")]
    match is_fine {
        true => phalanx::comm::mpi::finish(),
        false if phalanx::comm::mpi::is_started() => std::thread::sleep(LAST_WORDS),
        false => {}
    }
    #[cfg(not(feature = "mpi"))]
    let _ = is_fine;
}

#[cfg(not(feature = "mpi"))]
fn meet_over_mpi(_get: Lookup<'_>) -> anyhow::Result<Meeting> {
    bail!("this binary was built without the backend mpi")
}

/// The address of this host from which the store is reached, which is the one under which others reach this host;
/// `PHALANX_HOST` names it where that is wrong.
fn own_address(get: Lookup<'_>, store: &str) -> anyhow::Result<IpAddr> {
    if let Some(host) = get("PHALANX_HOST") {
        let found = (host.as_str(), 0).to_socket_addrs().ok().and_then(|mut all| all.next());
        return found.map(|a| a.ip()).with_context(|| {
            format!("PHALANX_HOST is `{host}` in the environment; it must be an address or name of this host")
        });
    }
    let server = store.split_once("://").map(|(_, server)| server.split(',').next().unwrap_or_default());
    let Some(server) = server else { return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)) };
    let server = server.to_socket_addrs().ok().and_then(|mut all| all.next());
    Ok(server.and_then(route_to).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

/// The own address on the way to `server`. Sends nothing.
fn route_to(server: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => "0.0.0.0:0".parse().ok()?,
        SocketAddr::V6(_) => "[::]:0".parse().ok()?,
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(server).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(feature = "mpi")]
fn default_address() -> Option<IpAddr> {
    route_to("192.0.2.1:9".parse().ok()?)
}

/// This host's name.
pub fn host_name() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    // Containers and namespaces may share a name; whoever sets this one knows better.
    environment("PHALANX_HOSTNAME").or(name).unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_up(table: &[(&str, &str)]) -> anyhow::Result<Option<Position>> {
        position(&|key| table.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn every_launcher_is_understood() {
        let at = |process, num_processes, says| Some(Position { process, num_processes, says });
        assert_eq!(looked_up(&[]).unwrap(), None);
        assert_eq!(looked_up(&[("RANK", "1")]).unwrap(), None);
        assert_eq!(looked_up(&[("RANK", "1"), ("WORLD_SIZE", "4")]).unwrap(), at(1, 4, "RANK"));
        let ompi = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "3")];
        assert_eq!(looked_up(&ompi).unwrap(), at(2, 3, "OMPI_COMM_WORLD_RANK"));
        assert_eq!(looked_up(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]).unwrap(), at(0, 2, "PMI_RANK"));
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")];
        assert_eq!(looked_up(&batch).unwrap(), None, "the batch script itself is no task");
        let step = [batch[0], batch[1], ("SLURM_STEP_ID", "0")];
        assert_eq!(looked_up(&step).unwrap(), at(0, 2, "SLURM_PROCID"));
        assert!(looked_up(&[("RANK", "4"), ("WORLD_SIZE", "4")]).is_err());
        assert!(looked_up(&[("RANK", "x"), ("WORLD_SIZE", "4")]).is_err());
    }

    #[test]
    fn the_first_node_of_a_list() {
        let lists = ["n1", "n1,n2", "node[01-04,7]", "node[3,5],x", "a,b[1-2]", "r[1-2]n5"];
        assert_eq!(lists.map(first_node), ["n1", "n1", "node01", "node3", "a", "r1n5"]);
    }
}
