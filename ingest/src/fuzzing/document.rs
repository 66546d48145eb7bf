//! Strict JSON, beside `serde_json` with a look for names that occur twice; and the minified form.

use super::plain::{self, Json, NoJson};
use crate::json::{Fault, Found, Places, Root, read};
use crate::location::Pointer;
use crate::verify::BodyForm;

const DEPTH_MAX: usize = 32;
const NODES_MAX: usize = 10_000;

pub(super) fn run(body: &[u8]) {
    let small = BodyForm::Minified.of(body);
    assert_eq!(small, plain::minified(body), "minified");
    assert_eq!(BodyForm::Minified.of(&small), small, "twice minified");

    let written = ["/a", "/data/cip", "/0", "/a/1/b", "/", "/a~1b/~0"];
    let pointers: Vec<Pointer> = written.iter().map(|text| Pointer::parse(text).expect("pointers")).collect();
    let ours = read(body, &Places::of(pointers.iter().map(Pointer::steps)));
    let theirs = std::str::from_utf8(body).ok().map(plain::json);
    match (&ours, theirs) {
        (Err(fault), None) => assert_eq!(*fault, Fault::Utf8),
        (Ok(ours), Some(Ok(theirs))) => {
            assert!(theirs.depth() <= DEPTH_MAX && theirs.nodes() <= NODES_MAX && theirs.has_sane_numbers());
            for (pointer, found) in pointers.iter().zip(&ours.found) {
                let expected = match theirs.at(pointer.steps()) {
                    None => Found::Missing,
                    Some(Json::Null) => Found::Null,
                    Some(Json::Bool) => Found::Bool,
                    Some(Json::Number(number)) => Found::Number(number),
                    Some(Json::Text(text)) => Found::Text(text.into()),
                    Some(Json::Array(_) | Json::Object(_)) => Found::Container,
                };
                assert_eq!(*found, expected, "{pointer}");
            }
            let root = match theirs {
                Json::Object(_) => Root::Object,
                Json::Array(_) => Root::Array,
                _ => Root::Scalar,
            };
            assert_eq!(ours.root, root);
            let again = read(&small, &Places::default()).expect("white space says nothing");
            assert_eq!(again.comparable, ours.comparable, "comparable");
        }
        // One pass stops at the first thing that is wrong; bounds are its own.
        (Err(Fault::Depth), Some(Ok(theirs))) => assert!(theirs.depth() > DEPTH_MAX),
        (Err(Fault::TooComplex), Some(Ok(theirs))) => assert!(theirs.nodes() > NODES_MAX),
        (Err(Fault::Number), Some(Ok(theirs))) => assert!(!theirs.has_sane_numbers()),
        (Err(Fault::Syntax), Some(Err(NoJson::Syntax)))
        | (Err(Fault::DuplicateKey | Fault::Depth | Fault::TooComplex | Fault::Number), Some(Err(_))) => {}
        (ours, theirs) => panic!("{:?} beside {theirs:?}", ours.as_ref().map(|read| &read.found)),
    }
}
