//! Lists and watches: selectors, pages, versions, representations, resuming.

mod test_server;

use http::Method;
use serde_json::{Value, json};
use test_server::{MAPS, World, config_map};

async fn labelled(world: &World, name: &str, app: &str) -> String {
    let mut map = config_map(name, "1");
    map["metadata"]["labels"] = json!({"app": app});
    world.post(MAPS, map).await.expect(201).version().to_owned()
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|i| i["metadata"]["name"].as_str().expect("a name")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_choose_by_labels_and_fields() {
    let world = World::start().await;
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        labelled(&world, name, app).await;
    }
    let list = async |query: &str| world.get(&format!("{MAPS}?{query}")).await.expect(200).body;
    assert_eq!(names(&list("labelSelector=app%3Dx").await), ["a", "c"]);
    assert_eq!(names(&list("labelSelector=app+notin+%28x%29").await), ["b"]);
    assert_eq!(names(&list("fieldSelector=metadata.name%3Db").await), ["b"]);
    assert_eq!(names(&list("fieldSelector=metadata.name%21%3Db").await), ["a", "c"]);
    let all = list("").await;
    assert!(all["items"][0].get("kind").is_none(), "items of a list have no kind");
    for bad in [
        "labelSelector=%21%21",
        "fieldSelector=bogus%3Dx",
        "limit=x",
        "resourceVersion=x",
        "continue=garbage",
    ] {
        world.get(&format!("{MAPS}?{bad}")).await.expect(400);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_one_consistent_state() {
    let world = World::start().await;
    for i in 0..7 {
        labelled(&world, &format!("m{i}"), if i % 2 == 0 { "even" } else { "odd" }).await;
    }
    let first = world.get(&format!("{MAPS}?limit=3")).await.expect(200).body;
    assert_eq!(names(&first), ["m0", "m1", "m2"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    world.delete(&format!("{MAPS}/m5"), Value::Null).await.expect(200);
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let rest = world.get(&format!("{MAPS}?limit=10&continue={token}")).await.expect(200).body;
    assert_eq!(names(&rest), ["m3", "m4", "m5", "m6"], "the page is of the first page's revision");
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let even = world.get(&format!("{MAPS}?limit=2&labelSelector=app%3Deven")).await.expect(200).body;
    assert_eq!(names(&even), ["m0", "m2"]);
    assert!(even["metadata"].get("remainingItemCount").is_none(), "unknowable with a selector");
    let token = even["metadata"]["continue"].as_str().expect("a token");
    let rest = world
        .get(&format!("{MAPS}?limit=2&labelSelector=app%3Deven&continue={token}"))
        .await
        .expect(200)
        .body;
    assert_eq!(names(&rest), ["m4", "m6"]);
    assert!(rest["metadata"].get("continue").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_comes_with_one_that_goes_on() {
    let world = World::start().await;
    for i in 0..4 {
        labelled(&world, &format!("m{i}"), "x").await;
    }
    let first = world.get(&format!("{MAPS}?limit=2")).await.expect(200).body;
    labelled(&world, "m9", "x").await;
    let store = world.consensus.store();
    store.compact(store.revision());
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let expired = world.get(&format!("{MAPS}?limit=2&continue={token}")).await.expect(410).body;
    assert_eq!(expired["reason"], "Expired");
    let token = expired["metadata"]["continue"].as_str().expect("an inconsistent token");
    let rest = world.get(&format!("{MAPS}?limit=9&continue={token}")).await.expect(200).body;
    assert_eq!(names(&rest), ["m2", "m3", "m9"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_is_not_there_yet_times_out_with_its_cause() {
    let world = World::start().await;
    let answer = world.get(&format!("{MAPS}?resourceVersion=99999999999")).await.expect(504).body;
    assert_eq!(answer["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(answer["details"]["retryAfterSeconds"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_come_in_the_representation_that_is_accepted() {
    let world = World::start().await;
    labelled(&world, "a", "x").await;
    let ask = async |path: &str, accept: &str| {
        world.ask(Method::GET, path, &[("accept", accept)], Vec::new()).await
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let list = ask(MAPS, table).await.expect(200).body;
    assert_eq!(list["kind"], "Table");
    assert_eq!(list["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(list["rows"][0]["cells"][0], "a");
    let whole = ask(&format!("{MAPS}?includeObject=Object"), table).await.expect(200).body;
    assert_eq!(whole["rows"][0]["object"]["data"]["a"], "1");
    let partial =
        ask(&format!("{MAPS}/a"), "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await;
    let partial = partial.expect(200).body;
    assert!(partial.get("data").is_none() && partial["metadata"]["labels"]["app"] == "x");
    let partials =
        ask(MAPS, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.expect(200).body;
    assert_eq!(
        (&partials["kind"], &partials["items"][0]["kind"]),
        (&json!("PartialObjectMetadataList"), &json!("PartialObjectMetadata"))
    );
    assert!(ask(&format!("{MAPS}/a"), "application/yaml").await.expect(200).text.contains("kind: ConfigMap"));
    ask(&format!("{MAPS}/a"), "text/csv").await.expect(406);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_every_change_once_and_resumes_where_it_stopped() {
    let world = World::start().await;
    let start = world.get(MAPS).await.expect(200).version().to_owned();
    let mut watch = world.watch(&format!("{MAPS}?watch=true&resourceVersion={start}")).await;
    let made = labelled(&world, "a", "x").await;
    world.put(&format!("{MAPS}/a"), config_map("a", "2")).await.expect(200);
    let gone = world.delete(&format!("{MAPS}/a"), Value::Null).await.expect(200);
    assert_eq!(gone.code, 200);
    for kind in ["ADDED", "MODIFIED", "DELETED"] {
        assert_eq!(watch.event().await, (kind.to_owned(), "a".to_owned()));
    }
    let mut resumed = world.watch(&format!("{MAPS}?watch=true&resourceVersion={made}")).await;
    assert_eq!(resumed.event().await.0, "MODIFIED");
    let deleted = resumed.next().await.expect("an event");
    assert_eq!(deleted["type"], "DELETED");
    let version =
        |v: &Value| v["object"]["metadata"]["resourceVersion"].as_str().and_then(|t| t.parse::<u64>().ok());
    assert!(version(&deleted) > made.parse::<u64>().ok(), "a deletion has a revision of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn entering_and_leaving_a_selector_is_added_and_deleted() {
    let world = World::start().await;
    labelled(&world, "a", "x").await;
    let mut watch = world.watch(&format!("{MAPS}?watch=true&labelSelector=app%3Dy")).await;
    world.merge(&format!("{MAPS}/a"), json!({"metadata": {"labels": {"app": "y"}}})).await.expect(200);
    assert_eq!(watch.event().await.0, "ADDED");
    world.merge(&format!("{MAPS}/a"), json!({"data": {"b": "2"}})).await.expect(200);
    assert_eq!(watch.event().await.0, "MODIFIED");
    world.merge(&format!("{MAPS}/a"), json!({"metadata": {"labels": {"app": "x"}}})).await.expect(200);
    let left = watch.next().await.expect("an event");
    assert_eq!(left["type"], "DELETED");
    assert_eq!(left["object"]["metadata"]["labels"]["app"], "y", "what this watcher saw last");
}

#[tokio::test(flavor = "multi_thread")]
async fn initial_events_end_with_an_annotated_bookmark() {
    let world = World::start().await;
    labelled(&world, "a", "x").await;
    labelled(&world, "b", "x").await;
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = world.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(watch.next().await.expect("an event")["object"]["metadata"]["name"], "a");
    assert_eq!(watch.next().await.expect("an event")["object"]["metadata"]["name"], "b");
    let end = watch.next().await.expect("a bookmark");
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(end["object"]["kind"], "ConfigMap");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_learns_of_progress_elsewhere_by_bookmark() {
    let world = World::start().await;
    let start = world.get(MAPS).await.expect(200).version().to_owned();
    let mut watch =
        world.watch(&format!("{MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={start}")).await;
    let other = world.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await.expect(201);
    let bookmark = watch.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    let reached: u64 = bookmark["object"]["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .expect("a revision");
    assert!(reached >= other.version().parse().expect("a number"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_compacted_history_gets_410_as_an_event() {
    let world = World::start().await;
    let old = labelled(&world, "a", "x").await;
    labelled(&world, "b", "x").await;
    let store = world.consensus.store();
    store.compact(store.revision());
    let mut watch = world.watch(&format!("{MAPS}?watch=true&resourceVersion={old}")).await;
    let error = watch.next().await.expect("an event");
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(watch.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_at_its_timeout_and_can_be_a_table() {
    let world = World::start().await;
    labelled(&world, "a", "x").await;
    let path = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let mut watch = world.watch_accepting(&path, "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    let row = watch.next().await.expect("an event");
    assert_eq!(
        (&row["object"]["kind"], &row["object"]["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    assert_eq!(watch.next().await, None);
}
