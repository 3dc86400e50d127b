use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const TEXT: Wanted<'static> = Wanted { name: "text", key: "text_column" };
const LABEL: Wanted<'static> = Wanted { name: "label", key: "label_column" };

fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    (directory, path)
}

fn read(name: &str, content: &[u8], wanted: &[Wanted<'_>]) -> Result<Vec<Row>, DataError> {
    let (_directory, path) = file(name, content);
    Rows::open(&path, Format::of(&path)?, wanted)?.collect()
}

fn row(line: u64, fields: &[&str]) -> Row {
    Row { line, fields: fields.iter().map(|field| Field::Text((*field).to_owned())).collect() }
}

fn message(result: Result<Vec<Row>, DataError>) -> String {
    let message = result.unwrap_err().to_string();
    message[message.rfind('/').map_or(0, |at| at + 1)..].to_owned()
}

#[test]
fn every_form_gives_the_same_rows() {
    let jsonl = "\u{feff}{\"label\": 1, \"text\": \"a, b\"}\n\n{\"text\": \"c\\nd\", \"label\": true}";
    assert_eq!(
        read("a.jsonl", jsonl.as_bytes(), &[TEXT, LABEL]).unwrap(),
        [row(1, &["a, b", "1"]), row(3, &["c\nd", "true"])]
    );
    let csv = "\u{feff}label,other,text\r\n1,,\"a, b\"\r\ntrue,x,\"c\nd\"\r\n";
    assert_eq!(
        read("a.csv", csv.as_bytes(), &[TEXT, LABEL]).unwrap(),
        [row(2, &["a, b", "1"]), row(3, &["c\nd", "true"])]
    );
    let tsv = "label\ttext\n1\ta, b\n";
    assert_eq!(read("a.TSV", tsv.as_bytes(), &[TEXT, LABEL]).unwrap(), [row(2, &["a, b", "1"])]);
    let list = |words: &[&str]| Field::List(words.iter().map(|word| (*word).to_owned()).collect());
    let iob = "-DOCSTART- O\n\nJohn B-PER\nruns O\n\n\nHere O\n";
    let rows = read("a.iob", iob.as_bytes(), &[TEXT, LABEL]).unwrap();
    assert_eq!(rows[0], Row { line: 3, fields: vec![list(&["John", "runs"]), list(&["B-PER", "O"])] });
    assert_eq!(rows[1], Row { line: 7, fields: vec![list(&["Here"]), list(&["O"])] });
    let tagged = r#"{"text": ["John", "runs"], "label": ["B-PER", "O"]}"#;
    let rows_of_json = read("b.jsonl", tagged.as_bytes(), &[TEXT, LABEL]).unwrap();
    assert_eq!(rows_of_json[0].fields, rows[0].fields);
    let text = format!("one\n{DOCUMENT}\ntwo\nthree\n{DOCUMENT}\n \n", DOCUMENT = crate::DOCUMENT_SEPARATOR);
    assert_eq!(
        read("a.txt", text.as_bytes(), &[TEXT]).unwrap(),
        [row(1, &["one\n"]), row(3, &["two\nthree\n"])]
    );
}

#[test]
fn packed_files_are_unpacked_whatever_their_names() {
    use std::io::Write;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(b"text,label\na,b\n").unwrap();
    let packed = packer.finish().unwrap();
    for name in ["a.csv.gz", "a.csv"] {
        assert_eq!(read(name, &packed, &[TEXT, LABEL]).unwrap(), [row(2, &["a", "b"])]);
    }
    assert!(read("a.csv.gz", &packed[..packed.len() - 9], &[TEXT, LABEL]).is_err());
}

#[test]
fn long_texts_come_in_parts_that_are_the_text() {
    let text: String = (0..30_000).map(|i| format!("line {i}\n")).collect();
    let rows = read("a.txt", text.as_bytes(), &[TEXT]).unwrap();
    assert!(rows.len() > 3 && rows[1].line > 1);
    let joined: String =
        rows.into_iter().map(|row| row.fields.into_iter().next().unwrap().into_text()).collect();
    assert_eq!(joined, text);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let both = [TEXT, LABEL];
    let of = |name: &str, content: &[u8]| message(read(name, content, &both));
    assert!(of("a.csv", b"text,label\na,b\nc\n").starts_with("a.csv:3: 1 fields where the first line has 2"));
    assert!(of("a.csv", b"text,label\na,\xff\n").starts_with("a.csv:2: field 2 is not UTF-8"));
    assert!(
        of("a.csv", b"body,label\na,b\n")
            .contains("no column `text`; it has body, label: name the right one in `[data] text_column`")
    );
    assert!(
        of("a.csv", b"label,text,label\na,b,c\n")
            .starts_with("a.csv: columns 1 and 3 are both `label`; rename one")
    );
    assert!(of("a.jsonl", b"{\"text\": \"a\", \"label\": 0}\n{\"text\": ").starts_with("a.jsonl:2: column "));
    assert!(of("a.csv", b"").starts_with("a.csv: is empty"));
    let lacking = of("a.jsonl", b"{\"text\": \"a\"}\n");
    assert!(lacking.starts_with("a.jsonl:1: no column `label`; it has text: "), "{lacking}");
    assert!(of("a.jsonl", b"[{\"text\": \"a\"}]").contains("jq -c"));
    assert!(of("a.jsonl", b"{\"text\": null, \"label\": 0}\n").starts_with("a.jsonl:1: `text` is neither"));
    assert!(of("a.jsonl", b"\n{\"text\": \"\xc3\"}\n").starts_with("a.jsonl:2: not UTF-8 at column 11"));
    assert!(of("a.jsonl", b"{\0}\n").starts_with("a.jsonl:1: a zero byte at column 2"));
    assert!(of("a.iob", b"a\tO\nb\n").starts_with("a.iob:2: 1 columns where the first line has 2"));
    assert!(of("a.parquet", b"PAR1 and nothing else").contains("not a whole Parquet file"));
    assert!(of("a.docx", b"").contains("set `[data] format` to one of text, jsonl, csv"));
    let (directory, path) = file("a.csv", b"");
    assert!(matches!(Rows::open(directory.path(), Format::Csv, &both), Err(DataError::IsDirectory { .. })));
    let gone = path.with_file_name("b.csv");
    assert!(matches!(Rows::open(&gone, Format::Csv, &both), Err(DataError::MissingFile { .. })));
}

#[test]
fn a_quote_that_is_never_closed_is_no_reason_to_hold_the_file() {
    let mut content = b"text,label\n\"".to_vec();
    content.resize(MAX_ROW_BYTES as usize + (1 << 20), b'x');
    assert!(message(read("a.csv", &content, &[TEXT])).contains("a quote is not closed"));
    content[..12].fill(b'x');
    assert!(message(read("a.jsonl", &content, &[TEXT])).contains("more than 64 MiB"));
}

#[test]
fn nothing_comes_behind_an_error() {
    let (_directory, path) = file("a.csv", b"text,label\na\nb,c\n");
    let mut rows = Rows::open(&path, Format::Csv, &[TEXT]).unwrap();
    assert!(rows.next().unwrap().is_err());
    assert!(rows.next().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Readers end on any bytes, with rows or with one error.
    #[test]
    fn any_bytes_are_read_or_refused(content in prop::collection::vec(any::<u8>(), 0..300), form in 0..6usize) {
        let (format, ..) = Format::ALL[form];
        let (_directory, path) = file("a", &content);
        if let Ok(rows) = Rows::open(&path, format, &[TEXT, LABEL]) {
            prop_assert!(rows.take(10_000).count() < 10_000);
        }
    }

    /// So do those that are nearly right.
    #[test]
    fn damaged_files_are_read_or_refused(at in 0..400usize, bit in 0..8u32, cut in 0..400usize) {
        let whole: [(&str, &[u8]); 5] = [
            ("a.csv", b"text,label\n\"a, b\",1\nc,2\n"),
            ("a.jsonl", b"{\"text\": \"a\\u00e9\", \"label\": [1, 2]}\n{\"text\": \"b\", \"label\": 1e3}\n"),
            ("a.iob", b"a B-X\nb I-X\n\nc O\n"),
            ("a.parquet", include_bytes!("../../fixtures/rows.parquet")),
            ("a.parquet", include_bytes!("../../fixtures/rows-zstd.parquet")),
        ];
        for (name, content) in whole {
            let mut damaged = content.to_vec();
            let at = at * damaged.len() / 400;
            damaged[at] ^= 1 << bit;
            let cut = cut * damaged.len() / 400;
            for content in [&damaged[..], &content[..cut]] {
                let (_directory, path) = file(name, content);
                if let Ok(rows) = Rows::open(&path, Format::of(&path).unwrap(), &[TEXT, LABEL]) {
                    prop_assert!(rows.take(10_000).count() < 10_000);
                }
            }
        }
    }
}

#[test]
fn parquet_of_other_programs_is_read() {
    let expected = [row(1, &["hello, world", "0"]), row(2, &["你好", "1"]), row(3, &["", "0"])];
    for content in [
        &include_bytes!("../../fixtures/rows.parquet")[..],
        include_bytes!("../../fixtures/rows-zstd.parquet"),
    ] {
        assert_eq!(read("a.parquet", content, &[TEXT, LABEL]).unwrap(), expected);
        let tokens = Wanted { name: "tokens", key: "text_column" };
        let rows = read("a.parquet", content, &[LABEL, tokens]).unwrap();
        assert_eq!(rows[0].fields[1], Field::List(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(rows[1].fields[0], Field::Text("1".to_owned()));
    }
}
