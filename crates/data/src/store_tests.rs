//! Tests of store.rs. No code that is not a test.

use std::fs;
use std::process::Command;
use std::sync::Barrier;

use super::*;

struct Fixture {
    directory: tempfile::TempDir,
    texts: Vec<PathBuf>,
    tokenizer: Tokenizer,
}

impl Fixture {
    fn new(contents: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let texts: Vec<PathBuf> =
            (0..contents.len()).map(|i| directory.path().join(format!("{i}.txt"))).collect();
        for (path, content) in texts.iter().zip(contents) {
            fs::write(path, content).unwrap();
        }
        let tokenizer = Tokenizer::train(&texts, 300).unwrap();
        Self { directory, texts, tokenizer }
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn open(&self, validation: f64) -> Result<TokenStore, DataError> {
        TokenStore::open_or_build(&self.texts, &self.tokenizer, &self.cache(), validation)
    }
}

fn stream(store: &TokenStore, split: Split) -> Vec<u32> {
    (0..store.num_tokens(split)).map(|i| store.token(split, i)).collect()
}

fn lines(count: usize) -> String {
    (0..count).map(|i| format!("line {i} of {}\n", i * i)).collect()
}

#[test]
fn documents_are_framed_and_share_their_frame() {
    let fixture = Fixture::new(&["one\u{c}two", "three"]);
    let store = fixture.open(0.0).unwrap();
    let encode = |text| fixture.tokenizer.encode(text).unwrap();
    let expected =
        [vec![0], encode("one"), vec![0], encode("two"), vec![0], encode("three"), vec![0]].concat();
    assert_eq!(stream(&store, Split::Train), expected);
    assert_eq!((store.num_documents(Split::Train), store.num_bytes(Split::Train)), (3, 11));
    let second = store.document(Split::Train, 1);
    assert_eq!(expected[second.clone()].first(), Some(&0));
    assert_eq!(expected[second].last(), Some(&0));
    assert_eq!((store.num_tokens(Split::HeldOut), store.num_bytes(Split::HeldOut)), (0, 0));
}

#[test]
fn distinct_and_missing_frames() {
    let mut stream = Stream::default();
    stream.push(Some(8), &[1, 2], Some(9), 4);
    stream.push(Some(8), &[3], Some(9), 2);
    assert_eq!(stream.split.tokens, [8, 1, 2, 9, 8, 3, 9]);
    assert_eq!(stream.split.documents, [0..4, 4..7]);
    let mut stream = Stream::default();
    stream.push(None, &[1, 2], Some(9), 4);
    stream.push(None, &[], Some(9), 1);
    stream.push(None, &[3], None, 2);
    assert_eq!(stream.split.tokens, [1, 2, 9, 3]);
    assert_eq!((stream.split.documents, stream.split.num_bytes), (vec![0..3, 3..4], 7));
    let mut stream = Stream::default();
    stream.push(Some(0), &[1], None, 1);
    stream.push(Some(0), &[2], Some(0), 1);
    assert_eq!(stream.split.tokens, [0, 1, 0, 2, 0], "an open document is closed by the next start");
}

#[test]
fn the_end_of_each_file_is_held_out() {
    let (a, b) = (lines(200), lines(100));
    let fixture = Fixture::new(&[&a, &b]);
    let store = fixture.open(0.1).unwrap();
    assert_eq!((store.num_bytes(Split::Train) + store.num_bytes(Split::HeldOut)) as usize, a.len() + b.len());
    let held = fixture.tokenizer.decode(&stream(&store, Split::HeldOut)).unwrap();
    assert_eq!(held.len() as u64, store.num_bytes(Split::HeldOut));
    let (of_a, of_b) = held.split_at(held.find("line 9").unwrap());
    assert!(a.ends_with(of_a) && b.ends_with(of_b), "{of_a} | {of_b}");
    assert!(held.len() <= (a.len() + b.len()) / 10 && held.len() > (a.len() + b.len()) / 11);
    assert_eq!(store.num_documents(Split::HeldOut), 2);
}

#[test]
fn a_cache_is_found_again_and_any_change_misses_it() {
    let fixture = Fixture::new(&[&lines(50)]);
    let first = fixture.open(0.1).unwrap();
    assert_eq!(first.origin(), &Origin::Built);
    let again = fixture.open(0.1).unwrap();
    assert_eq!((again.origin(), again.path()), (&Origin::Opened, first.path()));
    assert_eq!(fixture.open(0.2).unwrap().origin(), &Origin::Built);
    let moved = fixture.directory.path().join("moved.txt");
    fs::rename(&fixture.texts[0], &moved).unwrap();
    let texts = [moved.clone()];
    let open = |tokenizer| TokenStore::open_or_build(&texts, tokenizer, &fixture.cache(), 0.1).unwrap();
    assert_eq!(open(&fixture.tokenizer).origin(), &Origin::Opened, "the place does not matter");
    let other = Tokenizer::train(&texts, 270).unwrap();
    assert_eq!(open(&other).origin(), &Origin::Built);
    fs::write(&moved, lines(51)).unwrap();
    assert_eq!(open(&fixture.tokenizer).origin(), &Origin::Built);
}

#[test]
fn a_damaged_cache_is_rebuilt() {
    let fixture = Fixture::new(&[&lines(50)]);
    let path = fixture.open(0.1).unwrap().path().to_path_buf();
    let good = fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let longer = [&good[..], b"x"].concat();
    let damaged =
        [vec![], good[..100].to_vec(), good[..good.len() - 1].to_vec(), longer, flipped(3), flipped(40)];
    for bytes in damaged.into_iter().chain([flipped(good.len() - 1), flipped(150)]) {
        fs::write(&path, bytes).unwrap();
        let store = fixture.open(0.1).unwrap();
        assert!(matches!(store.origin(), Origin::Rebuilt { .. }));
        assert_eq!(fs::read(&path).unwrap(), good);
    }
    assert_eq!(fixture.open(0.1).unwrap().origin(), &Origin::Opened);
}

#[test]
fn threads_may_build_at_once() {
    let fixture = Fixture::new(&[&lines(400)]);
    let barrier = Barrier::new(4);
    let streams: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let builders: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    stream(&fixture.open(0.1).unwrap(), Split::Train)
                })
            })
            .collect();
        builders.into_iter().map(|builder| builder.join().unwrap()).collect()
    });
    assert!(streams.windows(2).all(|pair| pair[0] == pair[1]));
    let names: Vec<_> =
        fs::read_dir(fixture.cache()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1, "no temporary file is left: {names:?}");
}

/// Names the directory in which a child process of the next test builds.
const CHILD_DIRECTORY: &str = "PHALANX_DATA_TEST_DIRECTORY";

#[test]
fn processes_may_build_at_once() {
    if let Some(directory) = std::env::var_os(CHILD_DIRECTORY) {
        let directory = PathBuf::from(directory);
        let tokenizer = Tokenizer::load(&directory.join("tokenizer.json")).unwrap();
        let texts = [directory.join("0.txt")];
        for i in 1..20 {
            // A new cache each time, so that the processes race again and again.
            let validation = f64::from(i) / 100.0;
            let store =
                TokenStore::open_or_build(&texts, &tokenizer, &directory.join("cache"), validation).unwrap();
            assert!(store.num_tokens(Split::Train) > 1000 && store.token(Split::Train, 1000) > 0);
        }
        return;
    }
    let fixture = Fixture::new(&[&lines(400)]);
    fixture.tokenizer.save(&fixture.directory.path().join("tokenizer.json")).unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "store::tests::processes_may_build_at_once"]);
            child.env(CHILD_DIRECTORY, fixture.directory.path()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let num_files = fs::read_dir(fixture.cache()).unwrap().count();
    assert_eq!(num_files, 19, "the children ran, and left no temporary file");
}

#[test]
fn mistakes_are_named() {
    let fixture = Fixture::new(&["some text\n"]);
    assert!(matches!(fixture.open(-0.1), Err(DataError::ValidationOutOfRange { .. })));
    assert!(matches!(fixture.open(f64::NAN), Err(DataError::ValidationOutOfRange { .. })));
    let none = TokenStore::open_or_build(&[], &fixture.tokenizer, &fixture.cache(), 0.1);
    assert!(matches!(none, Err(DataError::NoFiles)));
    let blocked = TokenStore::open_or_build(&fixture.texts, &fixture.tokenizer, &fixture.texts[0], 0.1);
    assert!(matches!(blocked, Err(DataError::Write { .. } | DataError::Read { .. })), "{blocked:?}");
    let store = fixture.open(0.0).unwrap();
    assert!(store.check_vocab(store.vocab_size()).is_ok());
    assert!(matches!(store.check_vocab(100), Err(DataError::VocabMismatch { vocab_size: 100, .. })));
    let message = fixture.open(2.0).unwrap_err().to_string();
    assert!(message.contains("validation = 2"), "{message}");
}
