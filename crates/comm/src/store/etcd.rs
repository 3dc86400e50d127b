//! A store on many hosts: etcd. Keys live under a lease that this process keeps alive, so that a job that has died
//! leaves nothing behind.

use super::{Store, StoreError};
use etcd_client::{Client, Compare, CompareOp, ConnectOptions, PutOptions, Txn, TxnOp};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// How long keys outlive their process, in seconds.
const LEASE_SECONDS: i64 = 10;
/// How long a process that ends waits for its keys to go.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// A client of an etcd cluster.
pub struct EtcdStore {
    address: String,
    client: Client,
    lease: i64,
    runtime: Runtime,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EtcdStore({})", self.address)
    }
}

impl EtcdStore {
    /// Connects to `HOST:PORT[,HOST:PORT]...`, trying again until `limit`.
    ///
    /// # Errors
    /// `Unavailable` if no member answers.
    pub fn connect(address: &str, limit: Duration) -> Result<EtcdStore, StoreError> {
        let failed = |problem: String| StoreError::Unavailable {
            store: format!("etcd://{address}"),
            action: "reach",
            problem,
        };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|e| failed(e.to_string()))?;
        let endpoints: Vec<&str> = address.split(',').collect();
        let begun = Instant::now();
        let (client, lease) = loop {
            match runtime.block_on(join(&endpoints)) {
                Ok(joined) => break joined,
                Err(_) if begun.elapsed() < limit => std::thread::sleep(Duration::from_millis(200)),
                Err(problem) => {
                    let waited = begun.elapsed().as_secs_f64();
                    return Err(failed(format!("{} (tried for {waited:.1} s)", words(&problem))));
                }
            }
        };
        let mut keeping = client.clone();
        runtime.spawn(async move {
            // Ends when etcd has gone for good; the job itself does not need it any more by then.
            let Ok((mut keeper, mut answers)) = keeping.lease_keep_alive(lease).await else { return };
            while keeper.keep_alive().await.is_ok() && answers.message().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(LEASE_SECONDS as u64 / 4)).await;
            }
        });
        Ok(EtcdStore { address: address.to_owned(), client, lease, runtime })
    }

    fn failed(&self, action: &'static str) -> impl Fn(etcd_client::Error) -> StoreError {
        let store = self.describe();
        move |problem| StoreError::Unavailable { store: store.clone(), action, problem: words(&problem) }
    }
}

/// What is wrong in the end: the layers above it each say only that the one below failed.
fn words(problem: &etcd_client::Error) -> String {
    let mut deepest: &dyn std::error::Error = problem;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

async fn join(endpoints: &[&str]) -> Result<(Client, i64), etcd_client::Error> {
    let options = ConnectOptions::new().with_connect_timeout(REQUEST).with_timeout(REQUEST);
    let mut client = Client::connect(endpoints, Some(options)).await?;
    let lease = client.lease_grant(LEASE_SECONDS, None).await?.id();
    Ok((client, lease))
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        // The keys go with their process now and not when the lease runs out. An etcd that is away keeps nobody.
        let mut leases = self.client.lease_client();
        let revoke = async { tokio::time::timeout(GOODBYE, leases.revoke(self.lease)).await };
        let _ = self.runtime.block_on(revoke);
    }
}

impl Store for EtcdStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let options = PutOptions::new().with_lease(self.lease);
        let mut client = self.client.kv_client();
        let put = client.put(key, value, Some(options));
        self.runtime.block_on(put).map(|_| ()).map_err(self.failed("write to"))
    }

    fn create(&self, key: &str, value: &[u8]) -> Result<bool, StoreError> {
        let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(self.lease)));
        let absent = Compare::create_revision(key, CompareOp::Equal, 0);
        let transaction = Txn::new().when([absent]).and_then([put]);
        let mut client = self.client.kv_client();
        let answer = self.runtime.block_on(client.txn(transaction)).map_err(self.failed("write to"))?;
        Ok(answer.succeeded())
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut client = self.client.kv_client();
        let answer = self.runtime.block_on(client.get(key, None)).map_err(self.failed("read"))?;
        Ok(answer.kvs().first().map(|pair| pair.value().to_vec()))
    }

    fn describe(&self) -> String {
        format!("etcd://{}", self.address)
    }
}
