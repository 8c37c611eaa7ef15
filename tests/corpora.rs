//! The corpora of `fuzz/`, replayed: every input that a target was given, whole and cut off.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sandcaster::fuzz::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries.map(|entry| stem(entry.unwrap().path())).collect()
}

#[test]
fn every_target_has_its_program_and_its_corpus_and_the_other_way_round() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names_in(&fuzz().join("fuzz_targets")), names);
    assert_eq!(names_in(&fuzz().join("corpus")), names);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in names {
        let program = fuzz().join("fuzz_targets").join(format!("{name}.rs"));
        let call = format!("feed(\"{name}\", bytes)");
        assert!(
            fs::read_to_string(program).unwrap().contains(&call),
            "{name}"
        );
        let entry = format!("path = \"fuzz_targets/{name}.rs\"");
        assert!(manifest.contains(&entry), "{name}");
        let inputs = names_in(&fuzz().join("corpus").join(&name)).len();
        assert!(inputs >= 4, "{name} has {inputs} inputs");
    }
}

#[test]
fn every_input_is_taken_whole_and_cut_off() {
    for (name, target) in TARGETS {
        for entry in fs::read_dir(fuzz().join("corpus").join(name)).unwrap() {
            let input = fs::read(entry.unwrap().path()).unwrap();
            let step = (input.len() / 32).max(1);
            for end in (0..input.len()).step_by(step) {
                target(&input[..end]);
            }
            target(&input);
        }
    }
}
