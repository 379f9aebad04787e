//! Properties of headers, checked against well-formed lists of challenges.

use super::*;

proptest! {
    #[test]
    fn arbitrary_header_terminates_without_panic(value in prop::collection::vec(any::<u8>(), 0..200)) {
        if HeaderValue::from_bytes(&value).is_ok() {
            in_headers(&headers(WWW_AUTHENTICATE, &[&value]));
        }
    }

    #[test]
    fn header_of_grammar_characters_terminates_without_panic(value in r#"([ ,="\\:a]|Bearer |error|invalid_token){0,30}"#) {
        in_headers(&headers(WWW_AUTHENTICATE, &[value.as_bytes()]));
    }

    #[test]
    fn error_parameter_is_found_among_others(
        before in "(Bearer|DPoP) [a-z]{1,8}=\"[^\"\\\\]{0,20}\", ",
        after in "(, [a-z]{1,8}=[a-z]{1,8}){0,3}",
    ) {
        let value = format!("{before}error=\"invalid_token\"{after}");
        if let Ok(value) = HeaderValue::from_str(&value) {
            prop_assert!(in_headers(&headers(WWW_AUTHENTICATE, &[value.as_bytes()])));
        }
    }

    #[test]
    fn well_formed_challenges_match_model(
        challenges in prop::collection::vec(challenge(), 0..5),
        separator in separator(),
    ) {
        let value = render(&challenges, &separator);
        let value = HeaderValue::from_str(&value).unwrap();
        prop_assert_eq!(
            in_headers(&headers(WWW_AUTHENTICATE, &[value.as_bytes()])),
            challenges.iter().any(Challenge::is_invalid_token)
        );
    }

    #[test]
    fn challenges_after_malformed_part_are_ignored(
        challenges in prop::collection::vec(challenge(), 0..5),
        separator in separator(),
        malformed in prop::sample::select(vec![
            "Bearer realm=https://a/cb?error=invalid_token", "Bearer realm=\"x\" y", "a b c", "(x)", "\"x\"",
            "Bearer realm =", "a b=\"c\"d", "=", "a@b",
        ]),
    ) {
        let mut value = render(&challenges, &separator);
        if !value.is_empty() {
            value.push_str(&separator);
        }
        value.push_str(malformed);
        value.push_str(&separator);
        value.push_str("Bearer error=\"invalid_token\"");
        prop_assert_eq!(
            in_headers(&headers(WWW_AUTHENTICATE, &[value.as_bytes()])),
            challenges.iter().any(Challenge::is_invalid_token),
            "{}", value
        );
    }
}

/// A well-formed challenge of RFC 9110 §11.6.1.
#[derive(Clone, Debug)]
struct Challenge {
    scheme: String,
    token68: Option<String>,
    params: Vec<Param>,
}

#[derive(Clone, Debug)]
struct Param {
    name: String,
    equals: String,
    value: String,
    is_quoted: bool,
}

impl Challenge {
    fn is_invalid_token(&self) -> bool {
        ["bearer", "dpop"].contains(&&*self.scheme.to_lowercase())
            && self
                .params
                .iter()
                .any(|param| param.name.to_lowercase() == "error" && param.value == "invalid_token")
    }
}

fn challenge() -> impl Strategy<Value = Challenge> {
    let scheme = prop_oneof![
        4 => "Bearer|DPoP|bearer|DPOP",
        1 => "Basic|Digest|BearerX|error",
        1 => "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8}",
    ];
    let token68 = prop_oneof!["[A-Za-z0-9._~+/-]{1,12}={0,2}", "error=", "invalid_token"];
    let params = prop::collection::vec(param(), 0..4);
    (scheme, prop::option::weighted(0.2, token68), params).prop_map(|(scheme, token68, params)| {
        Challenge {
            scheme,
            params: token68.as_ref().map_or(params, |_| Vec::new()),
            token68,
        }
    })
}

fn param() -> impl Strategy<Value = Param> {
    let name = prop_oneof!["error|ERROR", "realm|error_description|x-error|Bearer"];
    let value = prop_oneof![
        4 => "invalid_token",
        1 => "Invalid_Token|insufficient_scope|invalid_token2",
        1 => "[\t -~]{0,12}",
        1 => "x\", Bearer error=\"invalid_token",
    ];
    (name, "[ \t]{0,2}=[ \t]{0,2}", value, any::<bool>()).prop_map(
        |(name, equals, value, quoted)| {
            let is_token = value
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            Param {
                name,
                equals,
                is_quoted: quoted || !is_token || value.is_empty(),
                value,
            }
        },
    )
}

/// A separator of list elements, which may have empty elements between them.
fn separator() -> impl Strategy<Value = String> {
    "[ \t]{0,2},[ \t,]{0,4}"
}

fn render(challenges: &[Challenge], separator: &str) -> String {
    let challenges = challenges.iter().map(|challenge| {
        let params = challenge.params.iter().map(|param| {
            let escaped = param.value.replace('\\', r"\\").replace('"', "\\\"");
            match param.is_quoted {
                true => format!("{}{}\"{escaped}\"", param.name, param.equals),
                false => format!("{}{}{}", param.name, param.equals, param.value),
            }
        });
        let mut elements: Vec<_> = challenge.token68.iter().cloned().chain(params).collect();
        if let Some(first) = elements.first_mut() {
            *first = format!("{} {first}", challenge.scheme);
        } else {
            elements.push(challenge.scheme.clone());
        }
        elements.join(separator)
    });
    challenges.collect::<Vec<_>>().join(separator)
}
