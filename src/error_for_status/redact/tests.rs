use proptest::prelude::*;

use super::*;

#[test]
fn redacts_credentials_and_queries() {
    for (message, expected) in [
        ("Slow down", "Slow down"),
        ("  two\nlines\t\u{7}x ", "two lines x"),
        ("no /accounts?token=abc here", "no /accounts here"),
        (
            "bad token eyJhbGciOiJIUzI1NiJ9.e30.x",
            "bad token [redacted]",
        ),
        ("sent Bearer abc today", "sent Bearer [redacted] today"),
        ("sent Bearer  abc today", "sent Bearer [redacted] today"),
        ("sent \"Bearer abc\"", "sent \"Bearer [redacted]"),
        (
            "Authorization:Basic:\r\n abc",
            "Authorization:Basic: [redacted]",
        ),
        ("at ftp://me:abc@host/ twice", "at [redacted] twice"),
        ("at ftp://host/#abc item #5", "at ftp://host/ item #5"),
        ("token='0af7651916cd43dd'", "[redacted]"),
        (
            "unauthorized.bad_access_token.expired",
            "unauthorized.bad_access_token.expired",
        ),
        ("", ""),
    ] {
        assert_eq!(redact(message), expected);
    }
}

#[test]
fn truncates_long_messages() {
    let redacted = redact(&"word ".repeat(100));
    assert!(redacted.len() <= 210 && redacted.ends_with('…'));
}

#[test]
fn redacts_labelled_values() {
    for (message, expected) in [
        (
            "sent Bearer token abc today",
            "sent Bearer token [redacted] today",
        ),
        (
            "sent Bearer token: abc today",
            "sent Bearer token: [redacted] today",
        ),
        (
            "sent Bearer token is abc",
            "sent Bearer token is [redacted]",
        ),
        ("Bearer:abc", "[redacted]"),
        ("Token abc is unknown", "Token [redacted] is unknown"),
        (
            "Authorization: Token abc",
            "Authorization: Token [redacted]",
        ),
        (
            "Authorization: ApiKey abc",
            "Authorization: ApiKey [redacted]",
        ),
        ("Authorization: abc", "Authorization: [redacted]"),
        ("ApiKey abc", "ApiKey [redacted]"),
        ("X-Api-Key: abc", "X-Api-Key: [redacted]"),
        ("Invalid API key abc.", "Invalid API key [redacted]"),
        (
            "Invalid API Key provided: sk_te**",
            "Invalid API Key provided: [redacted]",
        ),
        ("API key=abc", "API [redacted]"),
        ("with api_key=abc in it", "with [redacted] in it"),
        ("with access_token:abc in it", "with [redacted] in it"),
        (
            "with access_token: abc in it",
            "with access_token: [redacted] in it",
        ),
        (
            "with access_token = 'abc' in it",
            "with access_token = [redacted] in it",
        ),
        ("accessToken=>abc", "[redacted]"),
        (
            "data[token]: Invalid value: \"abc\"",
            "data[token]: Invalid value: [redacted]",
        ),
        (
            r#"Secret "api-token" is invalid: abc: Required value"#,
            r#"Secret "api-token" is invalid: [redacted] Required value"#,
        ),
        ("grant=x&client_secret=a,b", "[redacted]"),
        ("password=null;abc", "[redacted]"),
        ("password2: hunter", "password2: [redacted]"),
        ("password is hunter", "password is [redacted]"),
        ("password: пароль", "password: [redacted]"),
        (
            r#"got {"access_token":"short"} from"#,
            "got [redacted] from",
        ),
        (
            r#"got {\"access_token\":\"short\"} from"#,
            "got [redacted] from",
        ),
        (
            r#"{ "access_token" : "short", "x": 1 }"#,
            r#"{ "access_token" : [redacted] "x": 1 }"#,
        ),
        (r#"{"password":"my own words","x":1} y"#, "[redacted] y"),
        (
            r#"{"password": "my own words", "x": 1}"#,
            r#"{"password": [redacted] "x": 1}"#,
        ),
        (
            r#"{"token": {"value": "abc"}}"#,
            r#"{"token": {"value": [redacted]"#,
        ),
        (r#"{"token":{"value":"abc"}}"#, "[redacted]"),
        ("Token+abc", "[redacted]"),
        (r#"{"access_token":"value","x":"is"}"#, "[redacted]"),
        ("password=secret", "[redacted]"),
        ("at <token>abc</token>", "at [redacted]"),
        ("at Token(\"abc\")", "at [redacted]"),
        ("令牌token：abc", "令牌[redacted]"),
        ("令牌Token 为abc", "令牌Token 为[redacted]"),
    ] {
        assert_eq!(redact(message), expected, "{message}");
    }
}

#[test]
fn redacts_userinfo_without_scheme() {
    for (message, expected) in [
        (
            "cannot reach me:abc@host now",
            "cannot reach [redacted] now",
        ),
        ("(me:a?b@host)", "[redacted]"),
        (":abc@host", "[redacted]"),
        ("token:@host", "[redacted]"),
        (r#"{"dsn":"me:abc@host"}"#, "[redacted]"),
        ("错误me:密码@host", "错误[redacted]"),
        (r#"{"email":"me@host.com"}"#, r#"{"email":"me@host.com"}"#),
        ("ask me@host.com: soon", "ask me@host.com: soon"),
        ("git@host.com:me/crate.git", "git@host.com:me/crate.git"),
    ] {
        assert_eq!(redact(message), expected, "{message}");
    }
}

#[test]
fn redacts_percent_encoded_credentials() {
    for message in [
        "sk%5Flive%5Fabcd1234",
        "abcd%2Befgh%2Fijkl%3D%3D",
        "Bearer%20abc",
        "access%5Ftoken%3Dabc",
        "me%3Aabc%40host",
        "me%253Aabc%2540host",
        "me%252525253Aabc%252525252540host",
        "cb%3Fcode%3Dabc",
        "%7B%22token%22%3A%22abc%22%7D",
        "%00%01",
        "%ff",
    ] {
        assert_eq!(
            redact(&format!("at {message} now")),
            "at [redacted] now",
            "{message}"
        );
    }
    assert_eq!(redact("Bearer%20token abc"), "Bearer%20token [redacted]");
    for message in ["100% of /a%20b", "C++ 50%", "a+b@host.com", "%E4%BD%A0"] {
        assert_eq!(redact(message), message);
    }
}

/// Messages of real APIs, or in their style.
#[test]
fn ordinary_messages_stay_readable() {
    for message in [
        // Mondo.
        "Unknown account_id",
        "no amount",
        "Slow down",
        "Authorization required",
        "Access token has expired",
        "The access token is invalid or has expired. Please log in again.",
        "Bad authorization: missing header",
        "bad_request.missing_param.account_id: account_id is required",
        "unauthorized.bad_access_token.expired: the token has expired",
        "Parameter 'amount' must be positive, got -5",
        "invalid_token: The access token expired",
        // Stripe.
        "Your card was declined.",
        "No such customer: 'cus_unknown'",
        "Missing required param: amount.",
        "Amount must be at least $0.50 usd",
        "Keys for idempotent requests can only be used with the same parameters they were first used with.",
        "You did not provide an API key. You need to provide your API key in the Authorization header.",
        "The API key provided does not allow requests from your IP address.",
        "The provided key does not have access to account",
        // GitHub.
        "Bad credentials",
        "Requires authentication",
        "Must have admin rights to Repository.",
        "API rate limit exceeded for user ID 1234.",
        "Resource not accessible by personal access token",
        "You must grant your Personal Access token access to this organization.",
        "Problems parsing JSON",
        "You have exceeded a secondary rate limit. Please wait a few minutes (#5).",
        // Kubernetes.
        r#"pods "web" not found"#,
        r#"secrets "db-password" not found"#,
        r#"Secret "api-token" is invalid because metadata.name is missing"#,
        r#"pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group """#,
        r#"couldn't find key token in Secret default/app"#,
        "Operation cannot be fulfilled on pods: the object has been modified; please apply your changes",
        "error: You must be logged in to the server (the server has asked for the client to provide credentials)",
        "no kind is registered for the type v1.Pod (line 12:5)",
        // OAuth, JSON and others.
        "The refresh token was issued to another client",
        "CSRF token missing or incorrect.",
        "Token is required",
        "Token expired at 12:30:05",
        "Bearer token is missing",
        "Bearer authentication required",
        "Basic auth is not supported",
        "Basic authentication has been disabled",
        "Signature verification failed",
        "Token audience mismatch",
        "Invalid grant: refresh token reuse detected",
        "Could not verify token signature",
        "token contains an invalid number of segments",
        "Your token is not authorised for this resource",
        "The security token included in the request is invalid.",
        "Incorrect or missing token(s)",
        "API key not valid. Please pass a valid API key.",
        "Access token does not have the required scopes: accounts:read",
        "The request signature we calculated does not match the signature you provided.",
        r#"password authentication failed for user "bob""#,
        "invalid bearer token, square/go-jose: error in cryptographic primitive",
        "JWT expired",
        "password: must not be empty",
        "Password must be at least 8 characters",
        "token: This field is required.",
        r#"{"token":null,"id":5}"#,
        "Unexpected token < in JSON at position 0",
        "Unexpected token u in JSON at position 0",
        "Expected '}' at line 1, column 7",
        "maximum is 4097 tokens",
        "Contact support@host.com or see https://host.com/docs/errors",
        "connect to 10.0.0.1:8080 refused",
        // Without spaces, and other scripts.
        "访问令牌无效，请重新登录",
        "Token 无效，请重新登录",
        "アクセストークンの有効期限が切れています",
        "โทเค็นหมดอายุ",
        "недействительный токен",
    ] {
        assert_eq!(redact(message), message);
    }
}

#[test]
fn shows_start_of_long_message_without_spaces() {
    for text in ["访问令牌无效", "アクセス", "หมดอายุ", "é"] {
        let redacted = redact(&text.repeat(120));
        let start = redacted.strip_suffix('…').unwrap();
        assert!(text.repeat(120).starts_with(start), "{redacted}");
        assert!((197..=200).contains(&start.len()), "{redacted}");
    }
    let redacted = redact(&format!("错误 {}", "无效".repeat(100)));
    assert!(redacted.len() > 190 && redacted.starts_with("错误 无效无效"));
    assert_eq!(
        redact(&format!("无效{}", "abcd1234".repeat(20))),
        "无效[redacted]"
    );
}

#[test]
fn truncates_between_short_words() {
    let redacted = redact(&"word ".repeat(100));
    assert!(redacted.strip_suffix(" …").unwrap().ends_with(" word"));
}

/// With a cost that is quadratic in the length of the message, this test does not end.
#[test]
fn cost_does_not_depend_on_message_length() {
    for (text, expected) in [
        ("#", format!("{}…", "#".repeat(200))),
        (" ", "…".to_owned()),
        ("a", "[redacted] …".to_owned()),
        ("token:", "[redacted] …".to_owned()),
        ("://", "[redacted] …".to_owned()),
    ] {
        assert_eq!(redact(&text.repeat((4 << 20) / text.len())), expected);
    }
    for text in [
        "\"", ":", "=", "@", "%", "%25", "?", "'\"", "token=", "\":", "a:\"@", "无", "a无",
    ] {
        assert!(redact(&text.repeat((4 << 20) / text.len())).len() <= MAX_REDACTED_LEN);
    }
}

#[test]
fn redacts_word_that_is_cut() {
    for secret in [
        "abcdefgh1234567890",
        "abcdefghijklmnopqrst1",
        "me:abcdefgh@host",
        "ftp://me:abcdefgh@host",
        "token=abcdefgh",
        "Bearer abcdefgh",
        "me:密码密码@host",
        "无效abcdefgh1234567890",
        "Bearer%20abcdefgh",
        "me:a\"bcdefgh@host",
    ] {
        for before in MAX_SCANNED_LEN - 40..MAX_SCANNED_LEN {
            let redacted = redact(&format!("{}{secret} and more", " ".repeat(before)));
            for leak in ["ab", "密"] {
                assert!(
                    !redacted.contains(leak),
                    "{secret} after {before}: {redacted}"
                );
            }
        }
    }
}

/// Text around a secret, without the characters that mark one.
fn filler() -> impl Strategy<Value = String> {
    let prose = proptest::sample::select(vec![
        "the",
        "request",
        "token",
        "is",
        "invalid",
        "Bearer",
        "无效",
        "{\"a\":1}",
        "key",
        "API",
        "=",
        ":",
        "\"",
        "'",
        "?",
        "/a?b=c",
        "100%",
        "a+b",
        "ftp://host",
        "me@host",
        "…",
        "\n",
        "",
    ]);
    let word =
        prop_oneof![3 => prose.prop_map(str::to_owned), 1 => "\\PC{0,6}", 1 => any::<String>()];
    let text = proptest::collection::vec(word, 0..8).prop_map(|words| words.join(" "));
    (text, prop_oneof![4 => Just(0), 1 => 0usize..1100])
        .prop_map(|(text, spaces)| text.replace(['Z', 'Q'], "") + &" ".repeat(spaces))
}

fn percent_encoded(text: &str, all: bool) -> String {
    let encode = |c: char| match c.is_ascii_alphanumeric() && !all {
        true => c.to_string(),
        false => c
            .to_string()
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect(),
    };
    text.chars().map(encode).collect()
}

/// A message with a secret that contains `ZQ`.
fn message_with_secret() -> impl Strategy<Value = String> {
    let short = "ZQ[A-Za-z0-9._~+/-]{0,10}";
    let password = prop_oneof!["ZQ[!-~]{0,10}", "ZQ[^\\s\\p{C}]{0,6}"];
    let long = "[A-Za-z0-9._~+/-]{0,9}ZQ[A-Za-z0-9._~+/-]{15,60}7={0,2}";
    let label = proptest::sample::select(vec![
        "token",
        "Token",
        "access_token",
        "api_key",
        "apiKey",
        "X-Api-Key",
        "client_secret",
        "password",
        "refresh-token",
        "API key",
        "authorization",
    ]);
    let separator =
        proptest::sample::select(vec!["=", ":", ": ", " = ", "=\"", ":'", "\":\"", "\" : \""]);
    let scheme = proptest::sample::select(vec![
        "Bearer",
        "bearer",
        "Basic",
        "Token",
        "ApiKey",
        "Api-Key",
        "API key",
        "Bearer token",
        "\"Bearer",
        "Authorization: Bearer",
        "access token",
        "Bearer:",
        "Bearer token:",
        "Bearer token is",
    ]);
    let form = prop_oneof![
        long,
        (long, any::<bool>()).prop_map(|(secret, all)| percent_encoded(&secret, all)),
        (scheme, short).prop_map(|(scheme, secret)| format!("{scheme} {secret}")),
        (label, separator, short)
            .prop_map(|(label, separator, secret)| [label, separator, &secret].concat()),
        short.prop_map(|secret| format!("{{\"access_token\":\"{secret}\"}}")),
        password
            .clone()
            .prop_map(|secret| format!("me:{secret}@host")),
        password
            .clone()
            .prop_map(|secret| format!("password={secret}")),
        password.prop_map(|secret| format!("ftp://me:{secret}@host/")),
        short.prop_map(|secret| percent_encoded(&format!("me:{secret}@host"), true)),
        short.prop_map(|secret| percent_encoded(&format!("api_key={secret}"), false)),
        short.prop_map(|secret| percent_encoded(&format!("Bearer {secret}"), false)),
    ];
    (filler(), form, filler()).prop_map(|(before, form, after)| format!("{before} {form} {after}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn planted_secret_is_never_shown(message in message_with_secret()) {
        let redacted = redact(&message);
        for secret in ["ZQ", "%5A%51", "Z%51", "%5AQ"] {
            prop_assert!(!redacted.contains(secret), "{redacted}");
        }
    }

    #[test]
    fn any_message_becomes_one_short_line(
        message in prop_oneof![any::<String>(), ".{0,2000}", "[ -~\u{4e00}-\u{4e20}\u{200e}\n]{0,1500}", filler()],
    ) {
        let redacted = redact(&message);
        prop_assert!(redacted.len() <= MAX_REDACTED_LEN);
        prop_assert!(!redacted.contains(|c: char| c != ' ' && is_separator(c)), "{redacted:?}");
        prop_assert_eq!(redacted.trim(), &redacted);
    }
}
