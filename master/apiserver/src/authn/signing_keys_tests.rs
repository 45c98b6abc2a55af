//! Tests of `signing_keys.rs`: what a record says at which time, and which keys masters find by it.

use super::*;

const DAY: i64 = 86_400;
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn keys(first_key_pem: &str, secret: u8) -> SigningKeys {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let first_key_pem = first_key_pem.to_owned();
    let config = ServiceAccountKeys {
        first_key_pem,
        first_key_since: at(1000),
        first_key_tokens_until: at(5000),
        secret: [secret; 32].into(),
        lifetime: YEAR,
    };
    SigningKeys::new(config).expect("keys")
}

fn pem() -> String {
    rcgen::KeyPair::generate().expect("a key").serialize_pem()
}

fn entry(record: &Record, revision: Revision) -> Object {
    let value = serde_json::to_vec(record).expect("JSON");
    Object::new(STORE_KEY.into(), value.into(), revision, revision)
}

fn step(record: &Record, now: i64, published: bool) -> Option<Record> {
    record.step(now, YEAR, published, || format!("seed of {now}"))
}

fn seeds(record: &Record) -> Vec<&str> {
    record.keys.iter().map(|entry| entry.seed.as_str()).collect()
}

fn signing(record: &Record) -> &str {
    record.keys.iter().find(|entry| entry.signs()).map(|entry| entry.seed.as_str()).expect("a key that signs")
}

#[test]
fn a_key_is_published_then_signs_then_verifies_until_its_tokens_have_ended() {
    let first = Record::first(0, 0);
    assert_eq!(step(&first, 243 * DAY, true), None, "two thirds of a year are 243 days and 8 hours");
    let published = step(&first, 244 * DAY, true).expect("a next key");
    assert_eq!((seeds(&published).len(), signing(&published)), (2, ""));
    assert_eq!(step(&published, 400 * DAY, false), None, "it signs only once every master can have it");
    let signs = step(&published, 245 * DAY, true).expect("the next key signs");
    assert_eq!((seeds(&signs).len(), signing(&signs)), (2, &*format!("seed of {}", 244 * DAY)));
    let late = 245 * DAY + SHORT_TOKEN_SECONDS + MARGIN_SECONDS;
    assert_eq!(step(&signs, late - 1, false), None, "a token of the first key may be valid");
    let alone = step(&signs, late, false).expect("the first key goes");
    assert_eq!(seeds(&alone), [signing(&signs)]);
    // It signs since day 245.
    assert_eq!(step(&alone, (245 + 243) * DAY, true), None);
    assert!(step(&alone, (245 + 244) * DAY, true).is_some());
}

#[test]
fn a_long_token_keeps_its_key() {
    let first = Record::first(0, 0).with_tokens_until(1000 * DAY);
    let published = step(&first, 244 * DAY, true).expect("a next key");
    let signs = step(&published, 245 * DAY, true).expect("it signs").with_tokens_until(2000 * DAY);
    assert_eq!(signs.keys[0].tokens_until, 1000 * DAY, "the key that signs answers for later tokens");
    let later = step(&signs, 999 * DAY, true).expect("a third key");
    assert_eq!(seeds(&later).len(), 3);
    let without = step(&later, 1000 * DAY + MARGIN_SECONDS, false).expect("the first key goes");
    assert_eq!(seeds(&without), seeds(&later)[1..]);
}

#[test]
fn a_clock_that_went_back_takes_no_key_away() {
    let record = step(&Record::first(400 * DAY, 0), 700 * DAY, true).expect("a next key");
    let record = step(&record, 700 * DAY, true).expect("it signs");
    assert_eq!(step(&record, DAY, true), None);
}

#[test]
fn masters_find_the_same_keys_and_others_none_of_them() {
    let pem = pem();
    let (one, two, stranger) = (keys(&pem, 1), keys(&pem, 1), keys(&pem, 2));
    let record = step(&Record::first(0, 0), 244 * DAY, true).expect("a next key");
    let record = entry(&step(&record, 245 * DAY, true).expect("it signs"), 7);
    let ids = |keys: &SigningKeys, entry: Option<&Object>| -> Vec<String> {
        keys.of(entry).keys.iter().map(|key| key.id.clone()).collect()
    };
    let found = ids(&one, Some(&record));
    assert_eq!(found, ids(&two, Some(&record)));
    assert_eq!(found[0], ids(&one, None)[0], "the first key is the one in the file");
    assert_ne!(
        found[1],
        ids(&stranger, Some(&record))[1],
        "without the masters' secret the seed says nothing"
    );
    assert_eq!(one.of(Some(&record)).signing().expect("a key").0.id, found[1]);
    let jwks = one.of(Some(&record)).jwks();
    for (jwk, id) in jwks["keys"].as_array().expect("keys").iter().zip(&found) {
        assert_eq!((&jwk["kid"], &jwk["alg"], &jwk["use"]), (&json!(id), &json!("ES256"), &json!("sig")));
        assert!(jwk.get("d").is_none(), "{jwk}");
    }
}

#[test]
fn without_a_record_the_key_in_the_file_signs_and_nothing_is_known_of_its_tokens() {
    let keys = keys(&pem(), 1);
    let set = keys.of(None);
    assert_eq!(set.record, Record::first(1000, 5000));
    assert_eq!(set.signing().map(|(_, tokens_until)| tokens_until), Some(5000));
    assert_eq!(keys.end(&set), SystemTime::UNIX_EPOCH + Duration::from_secs(1000) + YEAR);
}

#[test]
fn a_record_that_cannot_be_read_leaves_the_keys_known() {
    let keys = keys(&pem(), 1);
    let record = step(&Record::first(0, 0), 244 * DAY, true).expect("a next key");
    assert_eq!(keys.of(Some(&entry(&record, 7))).keys.len(), 2);
    for (revision, text) in [(8, "{\"keys\":[]}"), (9, "not JSON")] {
        let broken = Object::new(STORE_KEY.into(), text.as_bytes().to_vec().into(), 7, revision);
        let set = keys.of(Some(&broken));
        // The revision is the old one too, so that no change can be made to what was not understood.
        assert_eq!((set.keys.len(), set.revision), (2, Some(7)), "{text}");
    }
    assert_eq!(keys.of(Some(&entry(&Record::first(0, 0), 10))).keys.len(), 1);
}

#[test]
fn a_key_is_published_for_longer_than_others_may_trust_what_they_know() {
    for (lifetime, lead) in [(10, 1), (1200, 100), (365 * 86_400, 7200)] {
        let mut keys = keys(&pem(), 1);
        keys.config.lifetime = Duration::from_secs(lifetime);
        assert_eq!(keys.lead(), Duration::from_secs(lead));
        assert!(keys.lead() >= 2 * RECENT);
    }
}
