//! Saves that stop: at every change to the file system, by SIGKILL, and on a full disk.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::files::fault;
use super::*;

/// Names a directory to the child of `checkpoint_survives_sigkill`.
const CHILD: &str = "PHALANX_TEST_SAVE_FOREVER";

/// Stops a save of `step` before each of its changes in turn; after each stop the newest checkpoint must be whole and
/// of a step that `allowed` holds, and the next save must succeed and leave nothing behind.
fn stop_everywhere(before: &[u64], step: u64, keep: usize, left: &[&str]) {
    let layout = &Layout::all()[2];
    let mut stops = 0;
    for changes in 0.. {
        // in memory where possible: thousands of syncs
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        for step in before {
            save_in(layout, dir.path(), *step, 3).unwrap();
        }
        fault::after(Some(changes));
        let result = save_in(layout, dir.path(), step, keep);
        let stopped = fault::struck();
        fault::after(None);
        let newest = Checkpoint::open_verified(dir.path());
        match newest {
            Ok(newest) => {
                let found = newest.manifest().step;
                assert!(found == step || Some(&found) == before.last(), "stop {changes}: step {found}");
                assert!(result.is_err() || found == step || before.last() > Some(&step), "stop {changes}");
                assert_whole(&newest);
            }
            Err(e) => {
                assert!(before.is_empty() && matches!(e, CheckpointError::NotFound { .. }), "{changes}: {e}")
            }
        }
        let done = save_in(layout, dir.path(), step, keep).unwrap();
        assert!(done.not_removed.is_empty());
        assert_eq!(names_in(dir.path()), left, "stop {changes}");
        assert_eq!(names_in(&done.dir).len(), 4, "3 shards and the manifest");
        assert_whole(&Checkpoint::open_verified(&done.dir).unwrap());
        if !stopped {
            break;
        }
        stops += 1;
    }
    assert!(stops > 20, "{stops}");
}

#[test]
fn checkpoint_survives_a_stop_at_every_change() {
    stop_everywhere(&[], 10, 2, &["step-00000010"]);
    stop_everywhere(&[5], 10, 2, &["step-00000005", "step-00000010"]);
    stop_everywhere(&[3, 5], 10, 1, &["step-00000010"]);
    // the same step again, and a history left behind
    stop_everywhere(&[5, 10], 10, 2, &["step-00000005", "step-00000010"]);
    stop_everywhere(&[5, 10], 7, 2, &["step-00000005", "step-00000007"]);
}

#[test]
fn checkpoints_beyond_the_number_to_keep_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    for step in 1..=5 {
        let done = save_in(&Layout::all()[1], dir.path(), step, 2).unwrap();
        assert_eq!(done.removed.len(), usize::from(step > 2));
    }
    assert_eq!(names_in(dir.path()), ["step-00000004", "step-00000005"]);
    save_in(&Layout::one(), dir.path(), 6, 0).unwrap();
    assert_eq!(names_in(dir.path()), ["step-00000006"]);
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    fs::create_dir(dir.path().join("step-7-copy")).unwrap();
    save_in(&Layout::one(), dir.path(), 8, 1).unwrap();
    assert_eq!(names_in(dir.path()), ["notes.txt", "step-00000008", "step-7-copy"]);
}

#[test]
fn checkpoint_survives_sigkill() {
    if let Some(dir) = std::env::var_os(CHILD) {
        // the child: saves until it is killed
        let dir = PathBuf::from(dir);
        let first = Checkpoint::open(&dir).map_or(1, |c| c.manifest().step + 1);
        for step in first.. {
            save_in(&Layout::all()[7], &dir, step, 2).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut newest = 0;
    for round in 0..100u64 {
        if round >= 12 && newest > 0 {
            break;
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoint::tests::kill::checkpoint_survives_sigkill"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(40 + round * 37 % 160));
        child.kill().unwrap();
        child.wait().unwrap();
        match Checkpoint::open_verified(dir.path()) {
            Ok(checkpoint) => {
                assert_whole(&checkpoint);
                assert!(checkpoint.manifest().step >= newest);
                newest = checkpoint.manifest().step;
            }
            Err(e) => assert!(newest == 0 && matches!(e, CheckpointError::NotFound { .. }), "{e}"),
        }
    }
    assert!(newest > 0);
}

/// A file system of its own, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        mount.is_ok_and(|out| out.status.success()).then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn checkpoint_on_a_full_disk_leaves_the_previous_one() {
    let Some(disk) = SmallDisk::mount("1m") else {
        eprintln!(
            "SKIPPED: checkpoint_on_a_full_disk_leaves_the_previous_one needs the right to mount a tmpfs"
        );
        return;
    };
    let checkpoints = disk.0.path().join("run/checkpoints");
    let data: Vec<u8> = (0..600_000u32).map(|i| (i % 251) as u8).collect();
    let local = [LocalTensor { name: "x", tile: Tile::whole(&[150_000]), data: &data, dtype: DType::F32 }];
    save(&checkpoints, manifest(5), &local, 1).unwrap();
    let error = save(&checkpoints, manifest(10), &local, 1).unwrap_err();
    assert!(matches!(error, CheckpointError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    let previous = Checkpoint::open_verified(&checkpoints).unwrap();
    assert_eq!((previous.manifest().step, previous.read_whole("x").unwrap()), (5, data.clone()));
    assert_eq!(names_in(&checkpoints), ["step-00000005"], "the failed save gave its space back");

    // full to the last byte: every part of a save fails in turn as space comes back
    let filler = disk.0.path().join("filler");
    for (failed, keep_free) in (0..100_000).step_by(4096).enumerate() {
        let _ = fs::remove_file(&filler);
        let mut file = fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(keep_free)).unwrap();
        let small =
            [LocalTensor { name: "x", tile: Tile::whole(&[1000]), data: &data[..4000], dtype: DType::F32 }];
        match save(&checkpoints, manifest(10), &small, 2) {
            Ok(done) => {
                assert!(failed > 0);
                assert_eq!(
                    Checkpoint::open_verified(&done.dir).unwrap().read_whole("x").unwrap(),
                    data[..4000]
                );
                return;
            }
            Err(e) => assert!(matches!(e, CheckpointError::DiskFull { .. }), "{e}"),
        }
        assert_eq!(Checkpoint::open_verified(&checkpoints).unwrap().manifest().step, 5);
    }
    panic!("no save succeeded although space came back");
}
