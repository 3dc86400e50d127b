//! The control connections: how they are made, the threads that listen and beat, and how a rank leaves.

use super::frame::{Failure, Frame};
use super::watch::Watch;
use crate::store::{Store, StoreError, Vigil, wait_for};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Key of the hub's address and secret.
const HUB: &str = "hub";
/// How long a write on a control connection may block before the peer counts as unreachable.
const WRITE: Duration = Duration::from_secs(1);
/// If this thread itself was away for so much longer than it slept, the whole process was stopped, and the silence of
/// others proves nothing.
const STALL: Duration = Duration::from_secs(1);

/// Why a world could not be watched.
pub(crate) enum HubError {
    Store(StoreError),
    Network { action: &'static str, address: String, problem: io::Error },
}

impl From<StoreError> for HubError {
    fn from(error: StoreError) -> HubError {
        HubError::Store(error)
    }
}

impl Watch {
    /// Makes the control connections: rank 0 listens at `address` and publishes it in the store, the others call.
    pub(crate) fn connect(
        self: &Arc<Watch>,
        store: &dyn Store,
        address: IpAddr,
        limit: Duration,
        vigil: &Vigil,
    ) -> Result<(), HubError> {
        let failed = |action, address: SocketAddr| {
            move |problem| HubError::Network { action, address: address.to_string(), problem }
        };
        if self.size() == 1 {
            return Ok(());
        }
        if self.is_hub() {
            let any = SocketAddr::new(address, 0);
            let listener = TcpListener::bind(any).map_err(failed("listen at", any))?;
            let bound = listener.local_addr().map_err(failed("listen at", any))?;
            listener.set_nonblocking(true).map_err(failed("listen at", bound))?;
            // Not a secret from an attacker on the network: it keeps out whoever calls by mistake.
            let secret = std::process::id() as u64 ^ (self.origin_nanos() << 16);
            store.set(HUB, format!("{bound} {secret}").as_bytes())?;
            self.accept(&listener, secret, limit, vigil).map_err(failed("gather the ranks at", bound))?;
        } else {
            let text =
                String::from_utf8_lossy(&wait_for(store, HUB, limit, &|| vigil.missed())?).into_owned();
            let parsed = text.split_once(' ').and_then(|(a, s)| Some((a.parse().ok()?, s.parse().ok()?)));
            let (hub, secret): (SocketAddr, u64) = parsed.ok_or_else(|| StoreError::Unavailable {
                store: store.describe(),
                action: "understand",
                problem: format!("`{text}` under {HUB}"),
            })?;
            let connection =
                TcpStream::connect_timeout(&hub, limit).map_err(failed("call rank 0 at", hub))?;
            let hello = Frame::Hello { rank: self.rank, secret };
            self.adopt(0, connection, Some(&hello)).map_err(failed("call rank 0 at", hub))?;
        }
        let watch = Arc::clone(self);
        std::thread::spawn(move || watch.beat());
        Ok(())
    }

    fn origin_nanos(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |d| d.as_nanos() as u64)
    }

    fn accept(
        self: &Arc<Watch>,
        listener: &TcpListener,
        secret: u64,
        limit: Duration,
        vigil: &Vigil,
    ) -> io::Result<()> {
        let begun = Instant::now();
        let mut come = vec![false; self.size()];
        come[0] = true;
        while let Some(missing) = come.iter().position(|c| !c) {
            if begun.elapsed() > limit || self.has_failed() {
                let why =
                    format!("rank {missing} did not call within {:.1} s", begun.elapsed().as_secs_f64());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            if let Some(missed) = vigil.missed() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, missed));
            }
            match listener.accept() {
                Ok((mut connection, _)) => {
                    connection.set_nonblocking(false)?;
                    connection.set_read_timeout(Some(WRITE))?;
                    // A stranger says something else, or nothing, and is let go.
                    if let Ok(Frame::Hello { rank, secret: theirs }) = Frame::read(&mut connection)
                        && theirs == secret
                        && come.get(rank) == Some(&false)
                    {
                        come[rank] = true;
                        self.adopt(rank, connection, None)?;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(2))
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Starts to listen on a connection and keeps it for writing.
    fn adopt(
        self: &Arc<Watch>,
        peer: usize,
        mut connection: TcpStream,
        hello: Option<&Frame>,
    ) -> io::Result<()> {
        connection.set_nodelay(true)?;
        connection.set_read_timeout(None)?;
        connection.set_write_timeout(Some(WRITE))?;
        if let Some(hello) = hello {
            hello.write(&mut connection)?;
        }
        let reading = connection.try_clone()?;
        self.heard_at[peer].store(self.now(), Ordering::Relaxed);
        self.connections().push((peer, connection));
        let watch = Arc::clone(self);
        std::thread::spawn(move || watch.listen(peer, reading));
        Ok(())
    }

    /// Reads what `peer` says until it goes.
    fn listen(&self, peer: usize, mut connection: TcpStream) {
        loop {
            let frame = Frame::read(&mut connection);
            self.heard_at[peer].store(self.now(), Ordering::Relaxed);
            match frame {
                Ok(Frame::Beat { progress }) if self.is_hub() => {
                    self.told[peer].store(progress, Ordering::Relaxed);
                }
                Ok(Frame::Beat { progress }) => self.world_moved(progress),
                Ok(Frame::Left { rank }) => {
                    self.note_left(if self.is_hub() { peer } else { rank });
                    if self.is_hub() {
                        self.tell(&Frame::Left { rank: peer });
                        self.see_whether_all_left();
                    }
                }
                Ok(Frame::AllLeft) => self.all_left.store(true, Ordering::SeqCst),
                Ok(Frame::Failed(failure)) => {
                    if self.learn(failure.clone()) && self.is_hub() {
                        self.tell(&Frame::Failed(failure));
                    }
                }
                Ok(Frame::Hello { .. }) => {}
                Err(_) if self.closing.load(Ordering::SeqCst) => return,
                Err(_) if self.has_left(peer) => {
                    // The hub goes when all have left, or when it has waited long enough for them.
                    self.all_left.fetch_or(!self.is_hub(), Ordering::SeqCst);
                    return;
                }
                Err(problem) => {
                    let how = match problem.kind() {
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                            format!("its process on {} ended", self.whereabouts(peer))
                        }
                        _ => {
                            format!("its control connection from {} broke: {problem}", self.whereabouts(peer))
                        }
                    };
                    self.fail(Failure::Gone { rank: peer, how: how.into() });
                    return;
                }
            }
        }
    }

    fn see_whether_all_left(&self) {
        if self.num_left() == self.size() {
            self.all_left.store(true, Ordering::SeqCst);
            self.tell(&Frame::AllLeft);
        }
    }

    /// Beats, and misses the beats of others, until this rank leaves.
    fn beat(&self) {
        let (pause, silence) = (self.options.beat(), self.options.silence.as_millis() as u64);
        let peers: Vec<usize> = self.connections().iter().map(|(peer, _)| *peer).collect();
        let mut slept = Instant::now();
        while !self.closing.load(Ordering::SeqCst) {
            let progress = if self.is_hub() {
                let told: u64 =
                    self.told.iter().map(|t| t.load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
                told.wrapping_add(self.own_progress())
            } else {
                self.own_progress()
            };
            if self.is_hub() {
                self.world_moved(progress);
            }
            self.tell(&Frame::Beat { progress });
            std::thread::sleep(pause);
            let was_stopped = slept.elapsed() > pause + STALL;
            slept = Instant::now();
            let now = self.now();
            for &peer in &peers {
                let heard = &self.heard_at[peer];
                if was_stopped {
                    heard.store(now, Ordering::Relaxed);
                }
                let silent = now.saturating_sub(heard.load(Ordering::Relaxed));
                if silent > silence && !self.has_left(peer) && !self.has_failed() {
                    let host = self.whereabouts(peer);
                    let how = format!(
                        "nothing was heard of it for {:.1} s: it is stopped, or {host} or the network to it is down",
                        silent as f64 / 1e3
                    );
                    self.fail(Failure::Gone { rank: peer, how: how.into() });
                }
            }
        }
    }

    /// Says goodbye and waits, for at most `grace`, until all others have: what this rank sent is then received, and
    /// the engine may go.
    pub(crate) fn leave(&self, grace: Duration) {
        if self.size() == 1 {
            return;
        }
        self.note_left(self.rank);
        if self.is_hub() {
            self.tell(&Frame::Left { rank: 0 });
            self.see_whether_all_left();
        } else {
            self.tell(&Frame::Left { rank: self.rank });
        }
        let begun = Instant::now();
        while !self.all_left.load(Ordering::SeqCst) && !self.has_failed() && begun.elapsed() < grace {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.close();
    }

    /// Ends the control connections.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for (_, connection) in self.connections().drain(..) {
            // What was written still arrives; the reader ends when the other side has closed too.
            let _ = connection.shutdown(std::net::Shutdown::Write);
        }
    }
}
