//! `chaski demo` needs nothing and ends well.

use crate::harness::{Layout, Site};

#[test]
fn the_demo_loses_nothing() {
    let site = Site::new(&Layout::default());
    let report = site.bare(&["demo", "--json"]).json();
    assert_eq!(report["lost"], 0, "{report}");
    assert_eq!(report["unexpected"], serde_json::json!([]), "{report}");
    for of in ["accepted", "duplicates", "refused", "quarantined"] {
        assert!(report[of].as_u64().is_some_and(|count| count > 0), "{of}: {report}");
    }
    let destinations = report["destinations"].as_array().unwrap();
    assert_eq!(destinations.len(), 3);
    for destination in destinations {
        assert_eq!(destination["delivered"], report["accepted"], "{report}");
    }
    let erp = destinations.iter().find(|destination| destination["destination"] == "erp").unwrap();
    assert!(erp["retries"].as_u64().is_some_and(|count| count > 0), "the ERP refuses for a while: {report}");
}
