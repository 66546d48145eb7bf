//! Certificates, made by openssl.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use super::{Site, text, tool};

/// The certificate `NAME.pem` with the key `NAME.key` in the site's folder, signed by itself or by `issuer`.
pub(crate) fn certificate(site: &Site, name: &str, issuer: Option<&str>, extensions: &[&str]) {
    let file = |name: &str, kind: &str| text(&site.path(&format!("{name}.{kind}"))).to_owned();
    let config = site.path("openssl.cnf");
    std::fs::write(&config, "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
    let (subject, cert, key) = (format!("/CN={name}"), file(name, "pem"), file(name, "key"));
    let mut arguments = vec![
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ];
    arguments.extend(["-config", text(&config), "-subj", &subject, "-keyout", &key, "-out", &cert]);
    let issuer = issuer.map(|issuer| (file(issuer, "pem"), file(issuer, "key")));
    if let Some((cert, key)) = &issuer {
        arguments.extend(["-CA", cert, "-CAkey", key]);
    }
    for extension in extensions {
        arguments.extend(["-addext", extension]);
    }
    tool("openssl", &arguments);
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
}

/// Makes `NAME.pem` end yesterday; its key stays.
pub(crate) fn expire(site: &Site, name: &str) {
    let [cert, key, request] = ["pem", "key", "csr"].map(|kind| site.path(&format!("{name}.{kind}")));
    let subject = format!("/CN={name}");
    let config = site.path("openssl.cnf");
    let ask = [
        "req",
        "-new",
        "-config",
        text(&config),
        "-key",
        text(&key),
        "-subj",
        &subject,
        "-out",
        text(&request),
    ];
    tool("openssl", &ask);
    let sign =
        ["x509", "-req", "-days", "-1", "-in", text(&request), "-signkey", text(&key), "-out", text(&cert)];
    tool("openssl", &sign);
}
