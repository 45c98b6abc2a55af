//! Tests of large lists: the streamed frames form the same list as a small answer, in every representation.

mod test_server;

use http::Method;
use http_body_util::BodyExt;
use proto_api::yaml;
use serde_json::{Value, json};
use test_server::{MAPS, PATIENCE, World, config_map};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const COUNT: usize = 300;

async fn many() -> World {
    let world = World::start().await;
    for i in 0..COUNT {
        // Words and lines that YAML must quote, long enough to fill several frames.
        let text = format!("{}\non: \"yes\"\n", "x".repeat(2000 + i));
        let mut map = config_map(&format!("m{i:03}"), &text);
        map["data"]["switch"] = json!("on");
        map["data"]["mode"] = json!("0644");
        world.post(MAPS, map).await.expect(201);
    }
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_many_frames_is_whole_in_every_representation() {
    let world = many().await;
    let list = world.get(MAPS).await.expect(200);
    let items = list.body["items"].as_array().expect("items");
    assert_eq!(items.len(), COUNT);
    assert_eq!(
        (&list.body["kind"], &items[7]["metadata"]["name"]),
        (&json!("ConfigMapList"), &json!("m007"))
    );

    let ask = async |accept: &str| {
        world.ask(Method::GET, MAPS, &[("accept", accept)], Vec::new()).await.expect(200)
    };
    let text = ask("application/yaml").await.text;
    let read = yaml::parse(text.as_bytes(), 0).expect("YAML").node.to_value();
    assert_eq!(read, list.body, "the YAML list is the JSON list");

    let table = ask(TABLE).await.body;
    let rows = table["rows"].as_array().expect("rows");
    assert_eq!((rows.len(), table["columnDefinitions"].as_array().map(Vec::len)), (COUNT, Some(3)));
    assert_eq!((&rows[299]["cells"][0], &rows[299]["cells"][1]), (&json!("m299"), &json!(3)));
    assert_eq!(rows[1]["object"]["metadata"], items[1]["metadata"]);
    let yaml_table = ask(&TABLE.replace("/json", "/yaml")).await.text;
    let read = yaml::parse(yaml_table.as_bytes(), 0).expect("YAML").node.to_value();
    assert_eq!(read["rows"].as_array().map(Vec::len), Some(COUNT));
    assert_eq!(read["columnDefinitions"], table["columnDefinitions"]);

    let partial = ask("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.body;
    let names = |list: &Value| -> Vec<Value> {
        let items = list["items"].as_array().expect("items");
        items.iter().map(|i| i["metadata"]["name"].clone()).collect()
    };
    assert_eq!(names(&partial), names(&list.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_follow_their_objects() {
    let world = World::start().await;
    world.post(MAPS, config_map("a", "1")).await.expect(201);
    let cells = async || {
        let table = world.ask(Method::GET, MAPS, &[("accept", TABLE)], Vec::new()).await.expect(200).body;
        table["rows"][0]["cells"].clone()
    };
    assert_eq!(cells().await[1], json!(1));
    world.merge(&format!("{MAPS}/a"), json!({"data": {"b": "2"}})).await.expect(200);
    assert_eq!(cells().await[1], json!(2));
    let empty = world.get("/api/v1/namespaces/kube-system/configmaps").await.expect(200).body;
    assert_eq!(empty["items"], json!([]));
    let path = "/api/v1/namespaces/kube-system/configmaps";
    let text =
        world.ask(Method::GET, path, &[("accept", "application/yaml")], Vec::new()).await.expect(200).text;
    assert!(text.contains("items: []\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_may_ask_for_any_time() {
    let world = World::start().await;
    world.post(MAPS, config_map("a", "1")).await.expect(201);
    let mut watch = world.watch(&format!("{MAPS}?watch=true&timeoutSeconds={}", i64::MAX)).await;
    assert_eq!(watch.event().await, ("ADDED".to_owned(), "a".to_owned()));
}

/// Asks for as many large lists as may be sent at once, and reads none of them.
async fn unread(world: &World, query: &str) -> Vec<http::Response<kube::client::Body>> {
    world.post(MAPS, config_map("large", &"x".repeat(100_000))).await.expect(201);
    let client = world.admin();
    let mut unread = Vec::new();
    for _ in 0..512 {
        let request = http::Request::get(format!("{MAPS}{query}"));
        let request = request.body(kube::client::Body::empty()).expect("a request");
        unread.push(client.send(request).await.expect("an answer"));
    }
    assert!(unread.iter().all(|answer| answer.status() == 200));
    unread
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_busy_server_refuses_is_sent_again_when_it_says() {
    let world = World::start().await;
    let unread = unread(&world, "").await;
    let waiting = world.get(MAPS);
    let room = async {
        // Time to be refused, which is not waited for: an answer in between would be the error.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        drop(unread);
    };
    let (list, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(waiting, room) }).await.expect("an answer");
    assert_eq!(list.expect(200).body["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_nobody_reads_make_room_for_others() {
    let world = World::start().await;
    let mut unread = unread(&world, "?timeout=3s").await;
    let began = std::time::Instant::now();
    while world.get(MAPS).await.code != 200 {
        assert!(began.elapsed() < PATIENCE, "no room for another list");
    }
    let first = unread.swap_remove(0).into_body().collect().await;
    assert!(first.is_err(), "a list that was not read in time ends with an error, not as if it were whole");
}
