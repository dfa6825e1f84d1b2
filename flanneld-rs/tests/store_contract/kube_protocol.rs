//! What the store relies on of an API server, asked without the store: of the double, and of a real one, which is right.

use crate::kube_api::{KubeApi, on_both};
use crate::kube_server::not_tested;
use crate::place::{Place, run};
use axum::http::Request;
use kube::Client;
use serde_json::{Value, json};

on_both! {
    a_list_is_streamed_and_ends_in_a_bookmark
    a_watch_goes_on_from_a_version_and_ends_in_time
    pages_show_one_moment
    patches_of_the_status_leave_the_rest_alone
    refusals_have_their_codes
}

fn run_on<F: Future<Output = ()>>(api: KubeApi, test: impl FnOnce(Place) -> F) {
    run(Place::Kube(api), test);
}

/// The text of the answer, or the code and the reason of the refusal.
async fn ask(client: &Client, method: &str, path: &str, kind: &str, body: &Value) -> Result<String, (u16, String)> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
    match client.request_text(request).await {
        Ok(text) => Ok(text),
        Err(kube::Error::Api(status)) => Err((status.code, status.reason)),
        Err(other) => panic!("{method} {path}: {other:?}"),
    }
}

async fn get(client: &Client, path: &str) -> Result<String, (u16, String)> {
    ask(client, "GET", path, "", &Value::Null).await
}

/// Kind, name, version and annotations of each event, of this test's nodes and of none.
fn events(api: &KubeApi, text: &str) -> Vec<(String, String, String, Value)> {
    let own = api.name("");
    let read = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        let (kind, metadata) = (event["type"].as_str().unwrap().to_owned(), &event["object"]["metadata"]);
        let name = metadata["name"].as_str().unwrap_or_default();
        let version = metadata["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let is_own = name.is_empty() || name.starts_with(&own);
        is_own.then(|| (kind, name.replace(&own, ""), version, metadata["annotations"].clone()))
    };
    text.lines().filter_map(read).collect()
}

async fn a_list_is_streamed_and_ends_in_a_bookmark(place: Place) {
    let api = place.kube();
    api.join("a", &["10.5.1.0/24"]).await;
    api.join("b", &["10.5.2.0/24"]).await;
    let client = api.client("node").await;
    let path = "/api/v1/nodes?watch=true&timeoutSeconds=3&allowWatchBookmarks=true&sendInitialEvents=true";
    let text = get(&client, &format!("{path}&resourceVersionMatch=NotOlderThan&resourceVersion=0")).await.unwrap();
    let events = events(api, &text);
    if events.iter().any(|(kind, ..)| kind == "ERROR") && api.double.is_none() {
        // By its own word; the store then asks for a list, as the other tests show.
        assert!(text.contains("RequestWatchProgress"), "{text}");
        not_tested("streamed lists of a real API server: its etcd is too old (3.4.31, 3.5.13 or later is needed)");
        return;
    }
    let kinds: Vec<_> = events.iter().take(3).map(|(kind, name, ..)| (kind.as_str(), name.as_str())).collect();
    assert_eq!(kinds, [("ADDED", "a"), ("ADDED", "b"), ("BOOKMARK", "")], "{events:?}");
    assert_eq!(events[2].3, json!({"k8s.io/initial-events-end": "true"}));
    assert!(events[2].2.parse::<u64>().unwrap() >= events[1].2.parse().unwrap());
    let refused = get(&client, &format!("{path}&resourceVersion=0")).await.unwrap_err();
    assert_eq!(refused, (422, "Invalid".into()));
}

async fn a_watch_goes_on_from_a_version_and_ends_in_time(place: Place) {
    let api = place.kube();
    api.join("a", &["10.5.1.0/24"]).await;
    let version = api.node("a").await["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    api.join("b", &[]).await;
    api.give("b", &["10.5.2.0/24"]).await;
    api.leave("a").await;
    let client = api.client("node").await;
    let path = format!("/api/v1/nodes?watch=true&timeoutSeconds=3&allowWatchBookmarks=true&resourceVersion={version}");
    let text = get(&client, &path).await.unwrap();
    let seen = events(api, &text);
    let changes: Vec<_> = seen.iter().filter(|event| event.0 != "BOOKMARK").collect();
    let kinds: Vec<_> = changes.iter().map(|(kind, name, ..)| (kind.as_str(), name.as_str())).collect();
    assert_eq!(kinds, [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a")], "{seen:?}");
    assert!(changes.windows(2).all(|pair| pair[0].2.parse::<u64>().unwrap() < pair[1].2.parse().unwrap()), "{seen:?}");
}

async fn pages_show_one_moment(place: Place) {
    let api = place.kube();
    for name in ["a", "b", "c"] {
        api.join(name, &[]).await;
    }
    let client = api.client("node").await;
    let (mut names, mut versions, mut next) = (Vec::new(), Vec::new(), String::new());
    loop {
        let text = get(&client, &format!("/api/v1/nodes?limit=1&continue={next}")).await.unwrap();
        let page: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(page["items"].as_array().unwrap().len(), 1);
        names.push(page["items"][0]["metadata"]["name"].as_str().unwrap().to_owned());
        versions.push(page["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
        if names.len() == 1 {
            api.leave("c").await;
        }
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => next = token.to_owned(),
            _ => break,
        }
    }
    names.retain(|name| name.starts_with(&api.name("")));
    assert_eq!(names, ["a", "b", "c"].map(|name| api.name(name)));
    assert!(versions.iter().all(|version| *version == versions[0]), "{versions:?}");
    let refused = get(&client, "/api/v1/nodes?limit=1&continue=garbage").await.unwrap_err();
    assert!(matches!(refused.0, 400 | 410), "{refused:?}");
}

const STRATEGIC: &str = "application/strategic-merge-patch+json";

async fn patches_of_the_status_leave_the_rest_alone(place: Place) {
    let api = place.kube();
    api.join("a", &["10.5.1.0/24"]).await;
    let (client, path) = (api.client("node").await, format!("/api/v1/nodes/{}/status", api.name("a")));
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "r", "message": "m"});
    let patch = json!({"metadata": {"annotations": {"example.org/x": "1"}}, "spec": {"unschedulable": true},
                       "status": {"conditions": [condition("NetworkUnavailable", "False")]}});
    ask(&client, "PATCH", &path, STRATEGIC, &patch).await.unwrap();
    let patch =
        json!({"status": {"conditions": [condition("Ready", "True"), condition("NetworkUnavailable", "True")]}});
    ask(&client, "PATCH", &path, STRATEGIC, &patch).await.unwrap();
    let node = api.node("a").await;
    assert_eq!(node["metadata"]["annotations"]["example.org/x"], "1");
    assert!(node["spec"]["unschedulable"].is_null(), "{node}");
    let conditions = node["status"]["conditions"].as_array().unwrap();
    let of = |kind: &str| conditions.iter().filter(|condition| condition["type"] == kind).collect::<Vec<_>>();
    assert_eq!((of("Ready").len(), of("NetworkUnavailable").len()), (1, 1), "{conditions:?}");
    assert_eq!(of("NetworkUnavailable")[0]["status"], "True");
    // What changes nothing has no version of its own.
    ask(&client, "PATCH", &path, STRATEGIC, &patch).await.unwrap();
    assert_eq!(api.node("a").await["metadata"]["resourceVersion"], node["metadata"]["resourceVersion"]);
}

async fn refusals_have_their_codes(place: Place) {
    let api = place.kube();
    api.join("a", &["10.5.1.0/24"]).await;
    let (node, admin) = (api.client("node").await, api.client("admin").await);
    let path = format!("/api/v1/nodes/{}", api.name("a"));
    let (status, merge) = (format!("{path}/status"), "application/merge-patch+json");
    let empty = json!({});
    let code = |outcome: Result<String, (u16, String)>| outcome.map(drop).unwrap_err();
    assert_eq!(code(get(&node, "/api/v1/nodes/absent").await), (404, "NotFound".into()));
    let absent = ask(&node, "PATCH", "/api/v1/nodes/absent/status", STRATEGIC, &empty).await;
    assert_eq!(code(absent), (404, "NotFound".into()));
    assert_eq!(code(ask(&node, "PATCH", &path, STRATEGIC, &empty).await), (403, "Forbidden".into()));
    assert_eq!(code(ask(&node, "DELETE", &path, "", &Value::Null).await), (403, "Forbidden".into()));
    assert_eq!(code(get(&node, "/api/v1/namespaces/default/events/x").await), (403, "Forbidden".into()));
    assert_eq!(code(ask(&node, "PATCH", &status, "text/plain", &empty).await).0, 415);
    let other = json!({"metadata": {"uid": "00000000-0000-4000-8000-00000000ffff"}});
    assert_eq!(code(ask(&node, "PATCH", &status, STRATEGIC, &other).await), (422, "Invalid".into()));
    let version = api.node("a").await["metadata"]["resourceVersion"].clone();
    api.annotate("a", &[("x", "1")]).await;
    let old = json!({"metadata": {"resourceVersion": version, "annotations": {"example.org/x": "2"}}});
    assert_eq!(code(ask(&node, "PATCH", &status, STRATEGIC, &old).await), (409, "Conflict".into()));
    let moved = json!({"spec": {"podCIDR": "10.5.9.0/24", "podCIDRs": ["10.5.9.0/24"]}});
    assert_eq!(code(ask(&admin, "PATCH", &path, merge, &moved).await), (422, "Invalid".into()));
    let again = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": api.name("a")}});
    let again = ask(&admin, "POST", "/api/v1/nodes", "application/json", &again).await;
    assert_eq!(code(again), (409, "AlreadyExists".into()));
}
