//! Chats: Slack, DingTalk, Feishu and Lark, WeCom. All get the same text; what differs is the envelope, how it is
//! signed, and how a refusal is told.
//!
//! Sources: Slack "Sending messages using incoming webhooks"; DingTalk "Custom robot access" and its security
//! settings; Feishu "Custom bot usage guide"; WeCom "Group robot configuration".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chaski_common::mac::{Hash, MacKey};
use chaski_common::secret::Secret;
use chaski_dispatcher::Answer;
use http::Uri;
use http::uri::PathAndQuery;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Message, Post, SendError, words};

/// Slack cuts longer texts into pieces.
const SLACK_BYTES_MAX: usize = 3800;
/// A robot's message may have 20,000 bytes, Feishu's 20 KiB with its envelope; nobody reads more than this.
const GROUP_BYTES_MAX: usize = 8000;
/// WeCom refuses a text of more than 2048 bytes.
const WECOM_BYTES_MAX: usize = 2048;

/// Codes for "too often": DingTalk, Feishu (twice), WeCom.
const TOO_OFTEN: [i64; 4] = [130_101, 9499, 11_232, 45_009];
/// Codes for "busy, come again": DingTalk's and WeCom's -1.
const BUSY: i64 = -1;

pub(super) fn slack(url: &Uri, message: &Message) -> Post {
    // The three characters that mean something in Slack's markup.
    let text = message.text(SLACK_BYTES_MAX).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Post::json(url, &json!({ "text": text }))
}

/// The signature stands in the query: base64 of HMAC-SHA256, under the secret, over the milliseconds, a line break and
/// the secret once more.
pub(super) fn dingtalk(url: &Uri, secret: Option<&Secret>, message: &Message, now: Timestamp) -> Post {
    let body = json!({ "msgtype": "text", "text": { "content": message.text(GROUP_BYTES_MAX) } });
    let Some(secret) = secret else { return Post::json(url, &body) };
    let timestamp = now.as_millisecond().to_string();
    let tag = MacKey::new(Hash::Sha256, secret.expose()).tag(&[timestamp.as_bytes(), b"\n", secret.expose()]);
    let sign = STANDARD.encode(tag.as_bytes()).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    Post::json(&with_query(url, &format!("timestamp={timestamp}&sign={sign}")), &body)
}

fn with_query(url: &Uri, more: &str) -> Uri {
    let path = url.path();
    let query = url.query().map_or_else(|| more.to_owned(), |query| format!("{query}&{more}"));
    let mut parts = url.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(format!("{path}?{query}")).ok();
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

/// The signature stands in the body: base64 of HMAC-SHA256 over nothing, under the seconds, a line break and the
/// secret.
pub(super) fn feishu(url: &Uri, secret: Option<&Secret>, message: &Message, now: Timestamp) -> Post {
    let mut body = json!({ "msg_type": "text", "content": { "text": message.text(GROUP_BYTES_MAX) } });
    if let Some(secret) = secret {
        let timestamp = now.as_second().to_string();
        let key = [timestamp.as_bytes(), b"\n", secret.expose()].concat();
        let tag = MacKey::new(Hash::Sha256, &key).tag(&[]);
        body["sign"] = STANDARD.encode(tag.as_bytes()).into();
        body["timestamp"] = timestamp.into();
    }
    Post::json(url, &body)
}

pub(super) fn wecom(url: &Uri, message: &Message) -> Post {
    Post::json(url, &json!({ "msgtype": "text", "text": { "content": message.text(WECOM_BYTES_MAX) } }))
}

/// These services say no with a 200 and a code in the body.
pub(super) fn accepted(answer: &Answer, url: &Uri) -> Result<(), SendError> {
    let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    // DingTalk and WeCom, Feishu, Feishu as it was.
    let code = ["errcode", "code", "StatusCode"].iter().find_map(|name| document[name].as_i64());
    match code {
        Some(0) => Ok(()),
        Some(code) => {
            let said = words(answer, url);
            Err(SendError::Code { code, said, is_transient: code == BUSY || TOO_OFTEN.contains(&code) })
        }
        None => Err(SendError::Refused { status: answer.status, said: words(answer, url) }),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;

    use super::*;

    fn url() -> Uri {
        Uri::from_static("https://chat.test/robot/send?access_token=t0ken")
    }

    fn now() -> Timestamp {
        Timestamp::from_millisecond(1_600_000_000_123).unwrap()
    }

    fn body(post: &Post) -> Value {
        serde_json::from_slice(&post.body).unwrap()
    }

    /// Expected values were made with Python's hmac, following the services' own examples.
    #[test]
    fn dingtalk_signs_in_the_query() {
        let secret = Secret::new("this is secret");
        let post = dingtalk(&url(), Some(&secret), &Message::test(now()), now());
        assert_eq!(
            post.url,
            "https://chat.test/robot/send?access_token=t0ken&timestamp=1600000000123&sign=hmZeBQ%2BBO34hCBHyaguEvv3lgoG%2F01g%2BlfEO9Jri4Xg%3D"
        );
        assert_eq!(body(&post)["msgtype"], "text");
        assert_eq!(dingtalk(&url(), None, &Message::test(now()), now()).url, url());
    }

    #[test]
    fn feishu_signs_in_the_body() {
        let secret = Secret::new("this is secret");
        let post = feishu(&url(), Some(&secret), &Message::test(now()), now());
        assert_eq!(post.url, url());
        let body = body(&post);
        assert_eq!(
            (&body["timestamp"], &body["sign"]),
            (&"1600000000".into(), &"KPGy2t/of6Xra/AnHPcFkxvTtTVcBl/AnCo8A9Y2Tto=".into())
        );
        assert_eq!(body["msg_type"], "text");
    }

    #[test]
    fn a_no_inside_a_yes_is_a_no() {
        let answer =
            |body: &'static str| Answer { status: StatusCode::OK, body: Bytes::from_static(body.as_bytes()) };
        for (body, outcome) in [
            (r#"{"errcode":0,"errmsg":"ok"}"#, Ok(())),
            (r#"{"code":0,"msg":"success"}"#, Ok(())),
            (r#"{"StatusCode":0,"StatusMessage":"success"}"#, Ok(())),
            (r#"{"errcode":310000,"errmsg":"sign not match"}"#, Err(false)),
            (r#"{"code":19021,"msg":"sign match fail"}"#, Err(false)),
            (r#"{"errcode":130101,"errmsg":"send too fast"}"#, Err(true)),
            (r#"{"errcode":45009,"errmsg":"api freq out of limit"}"#, Err(true)),
            ("<html>welcome</html>", Err(false)),
            ("", Err(false)),
        ] {
            assert_eq!(
                accepted(&answer(body), &url()).map_err(|error| error.is_transient()),
                outcome,
                "{body}"
            );
        }
    }
}
