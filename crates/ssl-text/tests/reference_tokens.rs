//! Token ids against those of transformers and open_clip.

use proptest::prelude::*;
use ssl_text::ClipTokenizer;

#[test]
fn ids_are_those_of_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/text/clip_tokens.json");
    let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 100);
    let tokenizer = ClipTokenizer::new().unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u64> =
            case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let ids = tokenizer.encode(text).unwrap().map(u64::from);
        assert_eq!(ids[..expected.len()], expected, "{text:?}");
        assert!(ids[expected.len()..].iter().all(|id| *id == 0), "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_text_has_a_start_one_end_and_nothing_behind_it(text in "\\PC{0,60}") {
        thread_local!(static TOKENIZER: ClipTokenizer = ClipTokenizer::new().unwrap());
        let ids = TOKENIZER.with(|tokenizer| tokenizer.encode(&text).unwrap());
        let end = ids.iter().position(|id| *id == ClipTokenizer::END).unwrap();
        prop_assert_eq!(ids[0], ClipTokenizer::START);
        prop_assert!(ids[1..end].iter().all(|id| *id < ClipTokenizer::START));
        prop_assert!(ids[end + 1..].iter().all(|id| *id == 0));
    }
}

#[test]
fn the_names_of_the_special_tokens_are_text() {
    let tokenizer = ClipTokenizer::new().unwrap();
    let ids = tokenizer.tokens("a <|endoftext|> b").unwrap();
    assert!(ids.iter().all(|id| *id < ClipTokenizer::START), "{ids:?}");
}
