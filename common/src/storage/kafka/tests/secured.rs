//! TLS, and a name and a password, with the settings that an operator writes.

use super::*;
use crate::storage::kafka::testing::SecuredBroker;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_kept_behind_tls_and_a_password() {
    let broker = tokio::task::spawn_blocking(SecuredBroker::start).await.unwrap();
    for mechanism in ["SCRAM-SHA-512", "PLAIN"] {
        let options = broker.options(mechanism);
        make_topics(&options).await;
        let storage = open(&options, &Registry::new()).await.unwrap();
        append(&storage, 0..3).await;
        assert_eq!(storage.events.find(EventFilter::default()).await.unwrap().len(), 3);
        storage.events.close().await;
    }
    let mut wrong = broker.options("SCRAM-SHA-512");
    let password = wrong.settings.iter_mut().find(|(name, _)| name == "sasl.password").unwrap();
    password.1 = "another-password".to_owned();
    let refused = plan(&wrong).await.unwrap_err();
    let StorageError::Engine { cause, .. } = &refused else { panic!("{refused:?}") };
    assert!(cause.to_string().contains("uthentication"), "{cause}");
    assert!(!format!("{refused:?} {wrong:?}").contains("another-password"));
    let mut unknown = broker.options("PLAIN");
    unknown.settings.retain(|(name, _)| name != "ssl.ca.location");
    let refused = plan(&unknown).await.unwrap_err();
    let StorageError::Engine { cause, .. } = &refused else { panic!("{refused:?}") };
    assert!(cause.to_string().contains("certificate"), "nobody vouches for it: {cause}");
}
