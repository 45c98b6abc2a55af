//! Tests of large lists: the streamed frames form the same list as a small answer, in every representation.

mod test_server;

use http::Method;
use proto_api::yaml;
use serde_json::{Value, json};
use test_server::{MAPS, World, config_map};

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
