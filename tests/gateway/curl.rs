//! Requests sent by curl.

use http::{HeaderMap, HeaderName, HeaderValue, Version};

use crate::support::{programs::command, timeout::with_timeout};

/// A response as curl received it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) version: Version,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn new(head: &str, body: Vec<u8>) -> Self {
        let mut lines = head.lines();
        let mut words = lines.next().unwrap().split(' ');
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        Self {
            version: match words.next() {
                Some("2") => Version::HTTP_2,
                _ => Version::HTTP_11,
            },
            status: words.next().unwrap().parse().unwrap(),
            headers,
            body,
        }
    }
}

/// Runs curl with `arguments`. Panics if it fails.
pub(crate) async fn curl(arguments: &[&str]) -> Reply {
    let mut curl = command("curl");
    curl.args(["-q", "-sS", "--noproxy", "*", "-D", "/dev/stderr"]);
    let output = with_timeout(curl.args(arguments).output()).await.unwrap();
    let heads = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {heads}");
    // The last head, because a 100 may precede it.
    let (_, head) = heads.rsplit_once("HTTP/").expect("a response");
    Reply::new(head, output.stdout)
}
