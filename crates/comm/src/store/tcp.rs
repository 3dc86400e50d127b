//! A store that one process serves over TCP: the launcher, or the process of rank 0 under `MASTER_ADDR` and
//! `MASTER_PORT`.
//!
//! A request is one byte of action, the lengths of key and value (little endian, 32 bits each), key and value. An
//! answer is one byte (1: yes or found) and a value with its length.

use super::{MemoryStore, Store, StoreError};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const SET: u8 = 0;
const CREATE: u8 = 1;
const GET: u8 = 2;
/// Opens a connection, so that whoever calls by mistake is hung up on.
const MAGIC: &[u8; 8] = b"phalanx1";
const MAX_KEY_BYTES: usize = 4 << 10;
const MAX_VALUE_BYTES: usize = 64 << 20;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Serves a table until the process ends.
#[derive(Debug)]
pub struct TcpStoreServer {
    address: SocketAddr,
}

impl TcpStoreServer {
    /// Listens at `address` (port 0: any free one).
    ///
    /// # Errors
    /// `Unavailable` if the port is in use or the address is not this host's.
    pub fn listen(address: SocketAddr) -> Result<TcpStoreServer, StoreError> {
        let failed = |problem: io::Error| StoreError::Unavailable {
            store: format!("tcp://{address}"),
            action: "serve",
            problem: match problem.kind() {
                io::ErrorKind::AddrInUse => {
                    "the port is in use, by another job or program; choose another port".to_owned()
                }
                _ => problem.to_string(),
            },
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let table = Arc::new(MemoryStore::default());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let table = Arc::clone(&table);
                // A client that breaks the protocol or goes away ends its own thread and nothing else.
                std::thread::spawn(move || serve(client, &table));
            }
        });
        Ok(TcpStoreServer { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn serve(mut client: TcpStream, table: &MemoryStore) -> io::Result<()> {
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(ANSWER))?;
    let mut magic = [0; MAGIC.len()];
    client.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    client.set_read_timeout(None)?;
    loop {
        let mut action = [0];
        client.read_exact(&mut action)?;
        let key = read_sized(&mut client, MAX_KEY_BYTES)?;
        let value = read_sized(&mut client, MAX_VALUE_BYTES)?;
        let key = String::from_utf8(key).map_err(|_| io::ErrorKind::InvalidData)?;
        let answer = match action[0] {
            SET => table.set(&key, &value).map(|()| Some(Vec::new())),
            CREATE => table.create(&key, &value).map(|created| created.then(Vec::new)),
            GET => table.get(&key),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let answer = answer.map_err(io::Error::other)?;
        let mut bytes = vec![u8::from(answer.is_some())];
        push_sized(&mut bytes, &answer.unwrap_or_default());
        client.write_all(&bytes)?;
    }
}

fn read_sized(from: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn push_sized(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    to.extend_from_slice(bytes);
}

/// A client of a [`TcpStoreServer`].
#[derive(Debug)]
pub struct TcpStore {
    address: String,
    connection: Mutex<TcpStream>,
}

impl TcpStore {
    /// Connects to `HOST:PORT`, trying again until `limit`: the server may come later than its clients.
    ///
    /// # Errors
    /// `Unavailable` if nobody answers.
    pub fn connect(address: &str, limit: Duration) -> Result<TcpStore, StoreError> {
        let begun = Instant::now();
        loop {
            match dial(address, limit) {
                Ok(connection) => {
                    return Ok(TcpStore { address: address.to_owned(), connection: Mutex::new(connection) });
                }
                Err(_) if begun.elapsed() < limit => std::thread::sleep(Duration::from_millis(50)),
                Err(problem) => {
                    let waited = begun.elapsed().as_secs_f64();
                    return Err(StoreError::Unavailable {
                        store: format!("tcp://{address}"),
                        action: "reach",
                        problem: format!("{problem} (tried for {waited:.1} s)"),
                    });
                }
            }
        }
    }

    fn ask(&self, action: u8, key: &str, value: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let failed = |problem: String| StoreError::Unavailable {
            store: self.describe(),
            action: if action == GET { "read" } else { "write to" },
            problem,
        };
        if key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
            return Err(failed(format!(
                "a key of {} or value of {} bytes is too large",
                key.len(),
                value.len()
            )));
        }
        let mut request = vec![action];
        push_sized(&mut request, key.as_bytes());
        push_sized(&mut request, value);
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut exchange = || {
            connection.write_all(&request)?;
            let mut found = [0];
            connection.read_exact(&mut found)?;
            Ok((found[0] == 1, read_sized(&mut *connection, MAX_VALUE_BYTES)?))
        };
        let (found, answer) = exchange().map_err(|e: io::Error| failed(e.to_string()))?;
        Ok(found.then_some(answer))
    }
}

fn dial(address: &str, limit: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit.max(Duration::from_millis(100))) {
            Ok(mut connection) => {
                connection.set_nodelay(true)?;
                connection.set_read_timeout(Some(ANSWER))?;
                connection.set_write_timeout(Some(ANSWER))?;
                connection.write_all(MAGIC)?;
                return Ok(connection);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

impl Store for TcpStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.ask(SET, key, value).map(|_| ())
    }

    fn create(&self, key: &str, value: &[u8]) -> Result<bool, StoreError> {
        Ok(self.ask(CREATE, key, value)?.is_some())
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.ask(GET, key, &[])
    }

    fn describe(&self) -> String {
        format!("tcp://{}", self.address)
    }
}
