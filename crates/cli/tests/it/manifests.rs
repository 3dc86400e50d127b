//! `deploy/jobset.yaml` as a cluster would run it: what each pod's container is told and does, with processes in place of
//! pods, directories in place of volumes, and an etcd of this test in place of the cluster's service.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use yaml_rust2::{Yaml, YamlLoader};

use crate::etcd::Server;
use crate::job::{assert_no_torn_checkpoint, finish, shards, signal, wait_until};
use crate::place::{Place, stderr};

/// How the manifest calls the store that the cluster must have.
const STORE: &str = "etcd://etcd.default.svc:2379";
const LIMIT: Duration = Duration::from_secs(120);

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn text(yaml: &Yaml) -> &str {
    yaml.as_str().unwrap_or_else(|| panic!("{yaml:?} is no string"))
}

fn list(yaml: &Yaml) -> &[Yaml] {
    yaml.as_vec().unwrap_or_else(|| panic!("{yaml:?} is no list"))
}

/// The manifest, and what Kubernetes knows of it.
struct JobSet(Yaml);

impl JobSet {
    fn read() -> JobSet {
        let manifest = fs::read_to_string(repository().join("deploy/jobset.yaml")).unwrap();
        let mut documents = YamlLoader::load_from_str(&manifest).unwrap();
        assert_eq!(documents.len(), 1);
        JobSet(documents.remove(0))
    }

    fn job(&self) -> &Yaml {
        &list(&self.0["spec"]["replicatedJobs"])[0]["template"]["spec"]
    }

    fn pod(&self) -> &Yaml {
        &self.job()["template"]["spec"]
    }

    fn container(&self) -> &Yaml {
        &list(&self.pod()["containers"])[0]
    }

    /// What Kubernetes puts in place of a field.
    fn field(&self, path: &str, index: i64, attempt: i64) -> String {
        match path {
            "metadata.annotations['batch.kubernetes.io/job-completion-index']" => index.to_string(),
            "metadata.labels['jobset.sigs.k8s.io/jobset-name']" => {
                text(&self.0["metadata"]["name"]).to_owned()
            }
            "metadata.labels['jobset.sigs.k8s.io/restart-attempt']" => attempt.to_string(),
            "status.podIP" => "127.0.0.1".to_owned(),
            other => panic!("no pod of a JobSet has the field {other}"),
        }
    }

    /// A container's environment: earlier variables may stand in the values of later ones.
    fn environment(&self, index: i64, attempt: i64) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        for entry in list(&self.container()["env"]) {
            let value = match &entry["value"] {
                Yaml::String(value) => {
                    variables.iter().fold(value.clone(), |value, (name, earlier): (&String, &String)| {
                        value.replace(&format!("$({name})"), earlier)
                    })
                }
                _ => self.field(text(&entry["valueFrom"]["fieldRef"]["fieldPath"]), index, attempt),
            };
            assert!(!value.contains("$("), "{value} names a variable that is not set before it");
            variables.insert(text(&entry["name"]).to_owned(), value);
        }
        variables
    }

    /// Starts the container of pod `index` as it is after `attempt` restarts.
    fn start(&self, place: &Place, store: &str, index: i64, attempt: i64) -> Child {
        let mounts = list(&self.container()["volumeMounts"]);
        let inside = |word: &str| {
            mounts.iter().fold(word.to_owned(), |word, mount| {
                let (path, name) = (text(&mount["mountPath"]), text(&mount["name"]));
                word.replace(&format!("{path}/"), &format!("{}/", place.path().join(name).display()))
            })
        };
        let words = [list(&self.container()["command"]), list(&self.container()["args"])].concat();
        let words: Vec<String> = words.iter().map(|word| inside(text(word))).collect();
        let variables = self.environment(index, attempt);
        assert_eq!(variables["PHALANX_STORE"], STORE);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(place.path()).env_clear().envs(&variables);
        command
            .env("PHALANX_STORE", store)
            .env("PATH", format!("{}/bin:/usr/bin:/bin", place.path().display()));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn start_all(&self, place: &Place, store: &str, attempt: i64) -> Vec<Child> {
        let pods = self.job()["completions"].as_i64().unwrap();
        (0..pods).map(|index| self.start(place, store, index, attempt)).collect()
    }
}

#[test]
fn the_job_set_is_whole_in_itself() {
    let set = JobSet::read();
    assert_eq!(text(&set.0["kind"]), "JobSet");
    let job = set.job();
    // Each pod is a rank with a number of its own, and one that ends ends them all.
    assert_eq!(text(&job["completionMode"]), "Indexed");
    assert_eq!(job["completions"], job["parallelism"], "ranks must run at the same time");
    assert_eq!((job["backoffLimit"].as_i64(), text(&set.pod()["restartPolicy"])), (Some(0), "Never"));
    let variables = set.environment(2, 1);
    assert_eq!(variables["WORLD_SIZE"], job["completions"].as_i64().unwrap().to_string());
    assert_eq!((&variables["RANK"][..], &variables["PHALANX_GENERATION"][..]), ("2", "1"));
    let volumes: Vec<&str> = list(&set.pod()["volumes"]).iter().map(|v| text(&v["name"])).collect();
    for mount in list(&set.container()["volumeMounts"]) {
        assert!(volumes.contains(&text(&mount["name"])), "{mount:?} mounts no volume");
    }
    // Nothing is set that neither `phalanx` nor the container's own script reads.
    let guide = fs::read_to_string(repository().join("docs/distributed.md")).unwrap();
    let script = text(&list(&set.container()["args"])[0]);
    for name in variables.keys() {
        assert!(
            guide.contains(&format!("`{name}`")) || script.contains(&format!("${name}")),
            "{name} is not read"
        );
    }
}

#[test]
fn the_container_trains_and_after_a_restart_goes_on_to_the_same_bits() {
    let (place, set) = (Place::new(), JobSet::read());
    let server = Server::start(&place);
    fs::create_dir_all(place.path().join("bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_phalanx"), place.path().join("bin/phalanx")).unwrap();
    let config = fs::read_to_string(place.path().join("small.toml")).unwrap();
    let config = config
        .replace("steps = 6", "steps = 400\ncheckpoint_every = 20")
        .replace("text.txt", &place.path().join("text.txt").display().to_string())
        + "[parallel.mesh]\ndp = 2\ntp = 2\n";
    let config = place.write("config/train.toml", config).display().to_string();
    fs::create_dir_all(place.path().join("runs")).unwrap();
    place.succeed(&["train", &config, "--out", "threads"]);

    let run = place.path().join("runs").join(text(&set.0["metadata"]["name"]));
    let pods = set.start_all(&place, &server.address, 0);
    wait_until("the first checkpoint", || run.join("checkpoints/step-00000020/manifest.json").exists());
    signal(pods[2].id(), "KILL");
    for (rank, pod) in pods.into_iter().enumerate() {
        let output = finish(pod, LIMIT);
        assert!(!output.status.success(), "rank {rank} goes on without rank 2");
        assert!(rank == 2 || stderr(&output).contains("rank 2 is gone"), "{}", stderr(&output));
    }
    assert_no_torn_checkpoint(&run, false);
    for pod in set.start_all(&place, &server.address, 1) {
        let output = finish(pod, LIMIT);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stderr(&output);
        assert!(!text.contains("step 1/"), "it began from its first step again: {text}");
    }
    assert!(shards(&run, 400) == shards(&place.path().join("threads"), 400), "other bits");
}
