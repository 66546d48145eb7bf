//! A webhook of one's own: the message as JSON, signed by Standard Webhooks where there is a secret, as deliveries
//! are.

use chaski_common::secret::Secret;
use chaski_dispatcher::Signer;
use http::{HeaderName, HeaderValue, Uri};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{Message, Post};

pub(super) fn post(url: &Uri, secret: Option<&Secret>, message: &Message, now: Timestamp) -> Post {
    let mut post = Post::json(url, message);
    // The same message has the same id each time it is tried.
    let id = format!("alert-{}", &hex::encode(Sha256::digest(&post.body))[..32]);
    let timestamp = now.as_second().to_string();
    let signature = secret.and_then(|secret| {
        Signer::new(std::slice::from_ref(secret)).sign(id.as_bytes(), timestamp.as_bytes(), &post.body)
    });
    let text = |text: String| HeaderValue::try_from(text).ok();
    for (name, value) in
        [("webhook-id", text(id)), ("webhook-timestamp", text(timestamp)), ("webhook-signature", signature)]
    {
        if let Some(value) = value {
            post.headers.insert(HeaderName::from_static(name), value);
        }
    }
    post
}
