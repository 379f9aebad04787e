//! Properties of bodies, checked against `serde_json`.

use serde_json::Value;

use super::*;

proptest! {
    #[test]
    fn arbitrary_body_terminates_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        in_body(&HeaderMap::new(), &body);
        in_body(&HeaderMap::new(), &[b"{", &*body].concat());
    }

    #[test]
    fn valid_json_matches_parser_on_each_prefix(json in json()) {
        let expected = json.get("error").is_some_and(|error| error == INVALID_TOKEN);
        // The position after the value of `error`, in an object whose keys are sorted.
        let members = json.as_object().into_iter().flatten();
        let members = members.filter(|(key, _)| key.as_str() <= "error");
        let first: Value = members.map(|(key, value)| (key.clone(), value.clone())).collect();
        for (text, end) in [
            (json.to_string(), first.to_string().len() - "}".len()),
            (format!("{json:#}"), format!("{first:#}").len() - "\n}".len()),
        ] {
            prop_assert_eq!(in_body(&HeaderMap::new(), text.as_bytes()), expected);
            for len in 0..text.len() {
                let found = in_body(&HeaderMap::new(), &text.as_bytes()[..len]);
                prop_assert_eq!(found, expected && len >= end, "{}", &text.as_bytes()[..len].escape_ascii());
            }
        }
    }

    #[test]
    fn repeated_and_escaped_keys_match_parser_on_each_prefix(
        members in prop::collection::vec((string_text(), json_value(), whitespace()), 0..6),
    ) {
        let mut text = "{".to_owned();
        // The lengths from which on the last `error` is or is not `invalid_token`.
        let mut changes = Vec::new();
        for (index, (key, value, whitespace)) in members.iter().enumerate() {
            text.extend((index > 0).then_some(','));
            text.push_str(&[whitespace, key, whitespace, ":", whitespace].concat());
            let start = text.len();
            text.push_str(&value.to_string());
            if serde_json::from_str::<String>(key).unwrap() == "error" {
                let known_at = if value.is_string() { text.len() } else { start + 1 };
                changes.push((known_at, value == INVALID_TOKEN));
            }
            text.push_str(whitespace);
        }
        text.push('}');
        let parsed: Value = serde_json::from_str(&text).unwrap();
        let expected = parsed.get("error").is_some_and(|error| error == INVALID_TOKEN);
        prop_assert_eq!(in_body(&HeaderMap::new(), text.as_bytes()), expected);
        for len in 0..text.len() {
            let last = changes.iter().rfind(|(known_at, _)| *known_at <= len);
            let expected = last.is_some_and(|(_, is_invalid_token)| *is_invalid_token);
            prop_assert_eq!(in_body(&HeaderMap::new(), &text.as_bytes()[..len]), expected, "{}", text);
        }
    }

    #[test]
    fn malformed_values_of_other_members_are_skipped(
        before in prop::collection::vec(malformed_member(), 0..4),
        after in prop::collection::vec(malformed_member(), 0..4),
        padding in "[ \r\n\t\0]{0,3}",
    ) {
        let error = br#""error":"invalid_token""#.to_vec();
        let end = [b"{", &*before.concat(), &*error].concat().len();
        let mut members = before;
        members.push([&*error, b","].concat());
        members.extend(after);
        let mut body = [b"{", &*members.concat()].concat();
        body.pop();
        let complete = [&*body, b"}", padding.as_bytes()].concat();
        prop_assert!(in_body(&HeaderMap::new(), &complete), "{}", complete.escape_ascii());
        for len in end..body.len() {
            prop_assert!(in_body(&HeaderMap::new(), &body[..len]), "{}", body[..len].escape_ascii());
        }
    }
}

fn json() -> impl Strategy<Value = Value> {
    let object = prop::collection::btree_map(key(), json_value(), 0..6);
    prop_oneof![
        4 => object.prop_map(|members| members.into_iter().collect()),
        1 => json_value(),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => Just(Value::from(INVALID_TOKEN)),
        1 => any::<String>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => any::<Option<bool>>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |value| {
        prop_oneof![
            prop::collection::vec(value.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key(), value, 0..4)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![2 => "error", 1 => "[a-z]{0,2}", 1 => any::<String>()]
}

/// A key as JSON text. Each character may be escaped.
fn string_text() -> impl Strategy<Value = String> {
    (key(), any::<u32>()).prop_map(|(key, escaped)| {
        let mut units = [0; 2];
        let chars = key.chars().enumerate().map(|(index, char)| {
            let plain = !char.is_control() && !['"', '\\'].contains(&char);
            if plain && escaped >> (index % 32) & 1 == 0 {
                return char.to_string();
            }
            let units = char.encode_utf16(&mut units).iter();
            units.map(|unit| format!("\\u{unit:04x}")).collect()
        });
        format!("\"{}\"", chars.collect::<String>())
    })
}

fn whitespace() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

/// A member with another key than `error`, and a comma.
fn malformed_member() -> impl Strategy<Value = Vec<u8>> {
    let keys: &[&[u8]] = &[
        br#""x""#,
        br#""\ud800""#,
        b"\"\n\"",
        b"\"\xff\"",
        br#""\x""#,
    ];
    let values: &[&[u8]] = &[
        b"-",
        b"01",
        b"+1",
        b"1.e",
        b"NaN",
        b"tru",
        b"'x'",
        b"[-]",
        b"[1 2,,]",
        b"{x}",
        b"[}",
        b"[[\"]\"]]",
        b"{\"error\":}",
        br#""\ud800""#,
        br#""\q""#,
        b"\"\n\"",
        b"\"\xff\"",
        b"\"\0\"",
    ];
    (prop::sample::select(keys), prop::sample::select(values))
        .prop_map(|(key, value)| [key, b":", value, b","].concat())
}
