//! Requests: every verb, its variables, its configuration, and the answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)] // a test fails by panicking

mod echo;

use cni_spec::{Answer, Code, NetworkConfig, Plugin, Request, SpecVersion, answer};
use echo::{Echo, Env, env};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{Error, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

fn ask(echo: &Echo, env: &Env, stdin: impl Read) -> Answer {
    let select = |name: &str| (name == "echo").then_some(echo as &dyn Plugin);
    answer("/opt/cni/bin/echo", |name| env.get(name).cloned(), stdin, select)
}

fn error(env: &Env, config: &str) -> Value {
    let echo = Echo::default();
    let answer = ask(&echo, env, config.as_bytes());
    assert_eq!(answer.status, 1, "{config}");
    assert_eq!(*echo.calls.borrow(), Vec::<String>::new(), "a plugin was called for {config}");
    serde_json::from_slice(&answer.stdout).unwrap()
}

const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"net","type":"echo","ipam":{"address":"10.1.0.5/16"}}"#;

/// Standard input that must not be touched.
struct Untouchable;

impl Read for Untouchable {
    fn read(&mut self, _: &mut [u8]) -> Result<usize, Error> {
        panic!("standard input was read");
    }
}

/// Standard input that breaks.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> Result<usize, Error> {
        Err(Error::other("torn pipe"))
    }
}

#[test]
fn version_is_answered_without_reading_anything_else() {
    let only_command: Env = [("CNI_COMMAND", "VERSION".into())].into();
    let answer = ask(&Echo::default(), &only_command, Untouchable);
    let expected = "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\
                    \"1.0.0\",\"1.1.0\"]}\n";
    assert_eq!((String::from_utf8(answer.stdout).unwrap().as_str(), answer.status), (expected, 0));
}

#[test]
fn a_person_gets_a_line_about_the_plugin() {
    for env in [Env::new(), [("CNI_COMMAND", OsString::new())].into()] {
        let answer = ask(&Echo::default(), &env, Untouchable);
        assert_eq!((answer.stdout.as_slice(), answer.status), (&b""[..], 0));
        assert!(answer.stderr.starts_with("CNI plugin echo ") && answer.stderr.lines().count() == 1);
    }
}

#[test]
fn verbs_reach_the_plugin_and_print_what_they_should() {
    let echo = Echo::default();
    let prev = r#"{"cniVersion":"1.1.0","name":"net","type":"echo","prevResult":{}}"#;
    let gc = r#"{"cniVersion":"1.1.0","name":"net","type":"echo","cni.dev/valid-attachments":
        [{"containerID":"a","ifname":"eth0"},{"containerID":"b","ifname":"net1"}]}"#;
    for (command, config) in [("DEL", CONFIG), ("CHECK", prev), ("GC", gc), ("STATUS", CONFIG)] {
        assert_eq!(ask(&echo, &env(command), config.as_bytes()), Answer::default(), "{command}");
    }
    let added = ask(&echo, &env("ADD"), CONFIG.as_bytes());
    let printed: Value = serde_json::from_slice(&added.stdout).unwrap();
    let expected = json!({
        "cniVersion": "1.1.0", "interfaces": [{ "name": "eth0" }], "ips": [{ "address": "10.1.0.5/16" }], "dns": {}
    });
    assert_eq!((printed, added.status), (expected, 0));
    let calls = ["DEL pod1 /run/netns/pod1", "CHECK pod1", "GC a/eth0+b/net1", "STATUS -", "ADD pod1"];
    assert_eq!(*echo.calls.borrow(), calls.map(|call| format!("{call} net echo")));
}

#[test]
fn a_result_is_printed_in_the_version_asked_for() {
    for version in SpecVersion::ALL {
        let config = CONFIG.replace("1.1.0", version.as_str());
        let answer = ask(&Echo::default(), &env("ADD"), config.as_bytes());
        let printed: Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(printed["cniVersion"], version.as_str());
        assert_eq!(printed.get("ip4").is_some(), version <= SpecVersion::V0_2_0);
    }
    let unstated = ask(&Echo::default(), &env("ADD"), CONFIG.replace("cniVersion", "other").as_bytes());
    assert_eq!(serde_json::from_slice::<Value>(&unstated.stdout).unwrap()["cniVersion"], "0.1.0");
}

#[test]
fn an_add_that_cannot_be_told_is_undone() {
    let echo = Echo::default();
    let answer = ask(&echo, &env("ADD"), &br#"{"cniVersion":"0.2.0","name":"net","type":"echo"}"#[..]);
    let printed: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!((answer.status, &printed["code"], &printed["cniVersion"]), (1, &json!(1), &json!("0.2.0")));
    assert_eq!(*echo.calls.borrow(), ["ADD pod1 net echo", "DEL pod1 /run/netns/pod1 net echo"]);
}

#[test]
fn a_plugins_error_is_printed_as_the_specification_says() {
    let config = CONFIG.replace("\"ipam\"", "\"fail\":true,\"ipam\"");
    let answer = ask(&Echo::default(), &env("ADD"), config.as_bytes());
    let expected = "{\n    \"cniVersion\": \"1.1.0\",\n    \"code\": 100,\n    \"msg\": \"told to fail\",\n    \
                    \"details\": \"by the test\"\n}";
    assert_eq!((String::from_utf8(answer.stdout).unwrap().as_str(), answer.status), (expected, 1));
}

#[test]
fn missing_variables_are_named_together() {
    for (command, names) in [
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
        ("GC", "CNI_PATH"),
        ("STATUS", "CNI_PATH"),
    ] {
        let error = error(&[("CNI_COMMAND", command.into())].into(), CONFIG);
        assert_eq!(error["code"], 4);
        assert_eq!(error["msg"], format!("required env variables [{names}] missing"));
    }
}

#[test]
fn wrong_variables_are_refused_by_name() {
    let long = "e".repeat(16);
    for (name, values) in [
        ("CNI_COMMAND", vec!["add", "ADD ", "CREATE"]),
        ("CNI_CONTAINERID", vec!["../x", "-a", ".a", "a b", "a/b", "ä", "a\n"]),
        ("CNI_IFNAME", vec![&long, ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{2003}b"]),
        ("CNI_ARGS", vec!["foo", "A=1;", ";A=1", "A=1;;B=2", "A=1=2", "=1"]),
    ] {
        for value in values {
            let mut env = env("ADD");
            env.insert(name, value.into());
            let error = error(&env, CONFIG);
            assert_eq!(error["code"], 4, "{name}={value}");
            assert!(error["msg"].as_str().unwrap().contains(name), "{error}");
        }
        let mut env = env("ADD");
        env.insert(name, OsString::from_vec(vec![b'a', 0xff]));
        assert_eq!(error(&env, CONFIG)["code"], 4, "{name} is not UTF-8");
    }
}

#[test]
fn parameters_arrive_as_they_were_given() {
    let mut env = env("ADD");
    env.insert("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0;EMPTY=".into());
    env.insert("CNI_PATH", "/a::/b c".into());
    env.insert("CNI_NETNS", OsString::from_vec(b"/run/netns/\xff".to_vec()));
    let Request::Add(sandbox, config) = Request::read(|name| env.get(name).cloned(), CONFIG.as_bytes()).unwrap() else {
        panic!("not an ADD")
    };
    assert_eq!(sandbox.path, [Path::new("/a"), Path::new("/b c")]);
    assert_eq!(sandbox.netns, PathBuf::from(OsString::from_vec(b"/run/netns/\xff".to_vec())));
    let args: Vec<_> = sandbox.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(args, ["EMPTY=", "IgnoreUnknown=1", "K8S_POD_NAME=web-0"]);
    assert_eq!((config.name.as_str(), config.plugin.as_str()), ("net", "echo"));
}

#[test]
fn del_goes_as_far_as_it_can() {
    let echo = Echo::default();
    let mut env = env("DEL");
    env.remove("CNI_NETNS");
    let config = r#"{"cniVersion":"1.0.0","name":"net","type":"echo","prevResult":{"ips":"rubbish"}}"#;
    assert_eq!(ask(&echo, &env, config.as_bytes()), Answer::default());
    assert_eq!(*echo.calls.borrow(), ["DEL pod1 none net echo"]);
}

#[test]
fn verbs_exist_from_their_version_on() {
    for version in SpecVersion::ALL {
        let config = json!({
            "cniVersion": version.as_str(), "name": "net", "type": "echo", "prevResult": {},
            "cni.dev/valid-attachments": []
        });
        for (command, since) in [
            ("ADD", SpecVersion::V0_3_0), // earlier an empty result cannot be told
            ("DEL", SpecVersion::V0_1_0),
            ("CHECK", SpecVersion::V0_4_0),
            ("GC", SpecVersion::V1_1_0),
            ("STATUS", SpecVersion::V1_1_0),
        ] {
            let answer = ask(&Echo::default(), &env(command), config.to_string().as_bytes());
            assert_eq!(answer.status == 0, version >= since, "{command} in {version}");
            if version < since {
                let error: Value = serde_json::from_slice(&answer.stdout).unwrap();
                assert_eq!((&error["code"], &error["cniVersion"]), (&json!(1), &json!(version.as_str())));
            }
        }
    }
}

#[test]
fn configurations_are_refused_with_the_right_code() {
    let huge = format!(r#"{{"name":"net","pad":"{}"}}"#, "x".repeat(cni_spec::MAX_CONFIG_SIZE));
    let deep = format!("{}{}", r#"{"name":"net","deep":"#, "[".repeat(100_000));
    let long = format!(r#"{{"name":"{}/"}}"#, "n".repeat(100_000));
    for (config, code) in [
        ("", 6),
        ("{", 6),
        ("[]", 6),
        ("{\"name\":\"net\"} trailing", 6),
        ("{\"name\":5}", 6),
        ("{\"name\":\"net\",\"cniVersion\":5}", 6),
        ("{\"name\":\"net\",\"type\":[]}", 6),
        ("{\"name\":\"net\",\"n\":1e999}", 6),
        ("{}", 7),
        ("{\"name\":\"\"}", 7),
        ("{\"name\":\"a/b\"}", 7),
        ("{\"name\":\"-a\"}", 7),
        ("{\"name\":\"net\",\"type\":\"../echo\"}", 7),
        ("{\"name\":\"net\",\"cniVersion\":\"0.9.0\"}", 1),
        ("{\"name\":\"net\",\"cniVersion\":\"1.1\"}", 1),
        ("{\"name\":\"net\",\"cniVersion\":\"abc\"}", 1),
        ("{\"name\":\"net\",\"cniVersion\":\"1.0.0\",\"prevResult\":[]}", 7),
        (&huge, 7),
        (&deep, 6),
        (&long, 7),
    ] {
        let error = error(&env("ADD"), config);
        assert_eq!(error["code"], code, "{:.80}: {error}", config);
        assert!(error["msg"].as_str().unwrap().len() < 300, "{error}");
    }
    let broken = ask(&Echo::default(), &env("ADD"), Broken);
    assert_eq!(serde_json::from_slice::<Value>(&broken.stdout).unwrap()["code"], 5);
}

#[test]
fn check_needs_a_previous_result() {
    let error = error(&env("CHECK"), r#"{"cniVersion":"1.0.0","name":"net","type":"echo"}"#);
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(7), &json!("1.0.0")));
    assert!(error["msg"].as_str().unwrap().starts_with("prevResult: "), "{error}");
}

#[test]
fn gc_wants_its_list_and_takes_nothing_for_it() {
    let gc = |list: &str| format!(r#"{{"cniVersion":"1.1.0","name":"net","type":"echo"{list}}}"#);
    for (list, valid) in [
        (r#","cni.dev/valid-attachments":null"#, ""),
        (r#","cni.dev/valid-attachments":[]"#, ""),
        (r#","cni.dev/attachments":[{"containerID":"old","ifname":"eth0"}]"#, "old/eth0"),
    ] {
        let echo = Echo::default();
        assert_eq!(ask(&echo, &env("GC"), gc(list).as_bytes()).status, 0, "{list}");
        assert_eq!(*echo.calls.borrow(), [format!("GC {valid} net echo")]);
    }
    for list in [
        "",
        r#","cni.dev/valid-attachments":{}"#,
        r#","cni.dev/valid-attachments":[null]"#,
        r#","cni.dev/valid-attachments":["a/eth0"]"#,
        r#","cni.dev/valid-attachments":[{"containerID":"a"}]"#,
        r#","cni.dev/valid-attachments":[{"containerID":"../a","ifname":"eth0"}]"#,
    ] {
        assert_eq!(error(&env("GC"), &gc(list))["code"], 7, "{list}");
    }
}

#[test]
fn the_executables_name_goes_before_the_configured_type() {
    let (delegate, caller) = (Echo::default(), Echo::default());
    let select = |name: &str| match name {
        "delegate" => Some(&delegate as &dyn Plugin),
        "caller" => Some(&caller as &dyn Plugin),
        _ => None,
    };
    let run = |executable: &str, plugin: &str| {
        let config = format!(r#"{{"cniVersion":"1.0.0","name":"net","type":"{plugin}"}}"#);
        let env = env("DEL");
        answer(executable, |name| env.get(name).cloned(), config.as_bytes(), select)
    };
    assert_eq!(run("/opt/cni/bin/delegate", "caller").status, 0);
    assert_eq!(run("delegate", "").status, 0);
    assert_eq!(run("/opt/cni/bin/multicall", "caller").status, 0);
    let named = |call: &str| format!("DEL pod1 /run/netns/pod1 net {call}");
    assert_eq!(*delegate.calls.borrow(), [named("caller"), named("delegate")]);
    assert_eq!(*caller.calls.borrow(), [named("caller")]);
    let nobody = run("multicall", "stranger");
    let error: Value = serde_json::from_slice(&nobody.stdout).unwrap();
    assert_eq!((&error["code"], nobody.status), (&json!(7), 1));
    assert!(error["msg"].as_str().unwrap().contains("stranger"), "{error}");
}

#[test]
fn keys_are_found_as_go_finds_them() {
    let config =
        r#"{"NAME":"net","CniVersion":"0.4.0","mtu":1,"MTU":2,"IPAM":{"SubNet":"10.0.0.0/8","x":null,"e":""}}"#;
    let config = NetworkConfig::parse(config.as_bytes()).unwrap();
    assert_eq!((config.name.as_str(), config.version), ("net", SpecVersion::V0_4_0));
    assert_eq!(config.field("mtu").number::<u16>().unwrap(), Some(1));
    let ipam = config.field("ipam");
    assert_eq!(ipam.field("subnet").unwrap().network().unwrap(), Some("10.0.0.0/8".parse().unwrap()));
    assert_eq!(ipam.field("x").unwrap().number::<u8>().unwrap(), None);
    assert_eq!(ipam.field("e").unwrap().string().unwrap(), None);
    assert_eq!(ipam.field("absent").unwrap().field("deeper").unwrap().bool().unwrap(), None);
    let wrong = ipam.field("subnet").unwrap().number::<u32>().unwrap_err();
    assert_eq!(wrong.code, Code::InvalidConfig);
    assert_eq!(wrong.msg, "ipam.subnet: must be a whole number of at most 32 bits, but is \"10.0.0.0/8\"");
}
