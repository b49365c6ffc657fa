//! Every target with its corpus.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn names(path: &Path) -> BTreeSet<String> {
    fs::read_dir(path)
        .expect("the folder exists")
        .map(|entry| {
            let name = entry.expect("the folder is readable").file_name();
            name.into_string().expect("the name is UTF-8")
        })
        .collect()
}

/// Runs a target with its corpus, and with each input cut short, since a connection may end anywhere.
#[expect(clippy::print_stdout, reason = "shown only if the test fails")]
fn run(name: &str) {
    let target = fuzz::target(name).expect("there is such a target");
    let corpus = folder("corpus").join(name);
    for file in names(&corpus) {
        let input = fs::read(corpus.join(&file)).expect("the input is readable");
        println!("{name}: {file}");
        (target.run)(&input);
        for length in [input.len() / 3, input.len() * 2 / 3] {
            (target.run)(&input[..length]);
        }
    }
}

macro_rules! corpora {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*

        #[test]
        fn each_target_has_a_test_a_corpus_and_a_dictionary() {
            let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
            let tests = [$(stringify!($name)),*].map(str::to_owned);
            assert_eq!(BTreeSet::from(tests), targets);
            assert_eq!(names(&folder("corpus")), targets);
            let dictionaries = targets.iter().map(|name| format!("{name}.dict")).collect();
            assert_eq!(names(&folder("dictionaries")), dictionaries);
        }
    };
}

corpora!(
    h1_request,
    h1_chunked,
    h1_response,
    path,
    h2_connection,
    forwarded,
    config,
    pattern,
    quota,
    jwt,
    json_body,
    refresh_token,
    bcrypt_hash,
    stored_rows,
);
