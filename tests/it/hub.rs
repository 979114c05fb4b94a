//! `hf://`: models from a small hub on this machine, with everything that can go wrong there.

mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fs_err as fs;

use crate::world::{RECIPE, Ran, World};
use server::{Fault, Host, REPO, Server, sha256};

/// Bytes of the weights that no test reads as weights.
const WEIGHTS: usize = 3_000_000;

/// A hub with one model on its branch `main`, and a folder to work in.
struct Place {
    world: World,
    server: Server,
    commit: String,
    variables: Vec<(&'static str, String)>,
}

impl Place {
    fn new() -> Self {
        Self::with(model())
    }

    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let (world, server) = (World::new(), Server::new());
        let commit = server.commit("main", files);
        world.write("recipe.yaml", RECIPE.replace("model: base", &format!("model: hf://{REPO}")));
        Self { world, server, commit, variables: Vec::new() }
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// The program with a cache of this test's own.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.command(arguments);
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"] {
            command.env_remove(name);
        }
        for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.server.endpoint).env("HF_HOME", self.world.path("hf"));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn heirloom(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output().unwrap();
        Ran {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Has the whole model fetched; the engine is a script that prints what it is given.
    fn fetch(&self) -> Ran {
        self.heirloom(&["generate", &format!("hf://{REPO}"), "--prompt", "Hello"])
    }

    fn fetched(&self) -> Ran {
        let ran = self.fetch();
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        ran
    }

    /// Has it fetched, which must be refused with these words.
    fn refused(&self, words: &str) -> Ran {
        let ran = self.fetch();
        assert_eq!(ran.status, Some(1), "{ran:?}");
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
        ran
    }

    fn repo(&self) -> PathBuf {
        self.world.path("hf/hub/models--org--seed")
    }

    fn snapshot(&self) -> PathBuf {
        self.repo().join("snapshots").join(&self.commit)
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.repo().join("blobs").join(sha256(bytes))
    }

    /// Blobs and what grows into blobs.
    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.repo().join("blobs")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn paths(&self) -> Vec<String> {
        self.server.requests().into_iter().map(|request| request.path).collect()
    }

    /// The parts of the weights that the large files' host was asked for.
    fn ranges(&self) -> Vec<Option<String>> {
        let name = sha256(&weights());
        let mut requests = self.server.requests();
        requests.retain(|request| request.host == Host::Cdn && request.path.contains(&name));
        requests.iter().map(|request| request.headers.get("range").cloned()).collect()
    }
}

fn weights() -> Vec<u8> {
    (0..WEIGHTS).map(|index| (index * 31 % 251) as u8).collect()
}

/// The bundled base without its weights, with bytes that stand for them, and with files that
/// nobody should ask for.
fn model() -> BTreeMap<String, Vec<u8>> {
    let mut files = seedling();
    files.insert("model.safetensors".to_owned(), weights());
    files.insert("training_args.bin".to_owned(), b"pickle".to_vec());
    files.insert("modeling_seed.py".to_owned(), b"import os".to_vec());
    files.insert("additional_chat_templates/short.jinja".to_owned(), b"{{ messages }}".to_vec());
    files
}

fn seedling() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/seedling");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_none_or(|end| end != "safetensors"));
    paths
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect()
}

#[test]
fn a_model_lands_in_the_layout_of_the_python_tools() {
    let place = Place::new();
    let ran = place.fetched();
    let snapshot = place.snapshot();
    assert!(ran.stdout.contains(snapshot.to_str().unwrap()), "{}", ran.stdout);
    for (name, bytes) in model() {
        let path = snapshot.join(&name);
        if name == "training_args.bin" || name == "modeling_seed.py" {
            assert!(!path.exists(), "{name} was not asked for");
            continue;
        }
        assert_eq!(fs::read(&path).unwrap(), bytes, "{name}");
    }
    let link = fs::read_link(snapshot.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(&weights())));
    let deep = fs::read_link(snapshot.join("additional_chat_templates/short.jinja")).unwrap();
    assert!(deep.starts_with("../../../blobs"), "{deep:?}");
    assert_eq!(fs::read_to_string(place.repo().join("refs/main")).unwrap(), place.commit);
    let locks = place.world.path("hf/hub/.locks/models--org--seed");
    assert!(locks.join(format!("{}.lock", sha256(&weights()))).is_file());
    assert!(!place.blobs().iter().any(|name| name.ends_with(".incomplete")));
    assert!(ran.stderr.contains("downloading model.safetensors (2.86 MiB)"), "{}", ran.stderr);
    assert!(ran.stderr.contains("downloaded model.safetensors (2.86 MiB)"), "{}", ran.stderr);
}

#[test]
fn what_the_cache_has_is_not_asked_for_again() {
    let place = Place::new();
    place.fetched();
    place.server.requests();
    place.fetched();
    // A branch may have moved: that alone is asked.
    assert_eq!(place.paths(), [format!("/api/models/{REPO}/revision/main")]);
    let pinned = format!("hf://{REPO}@{}", place.commit);
    let ran = place.heirloom(&["generate", &pinned, "--prompt", "Hello"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert_eq!(place.paths(), [""; 0]);
    assert!(!ran.stderr.contains("download"), "{}", ran.stderr);
}

#[test]
fn quiet_downloads_say_nothing() {
    let place = Place::new();
    let address = format!("hf://{REPO}");
    let ran = place.heirloom(&["--quiet", "generate", &address, "--prompt", "Hello"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
}

#[test]
fn nothing_is_asked_of_the_hub_unless_it_is_named() {
    let place = Place::new();
    place.world.write("recipe.yaml", RECIPE);
    let ran = place.heirloom(&["check", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert_eq!(place.paths(), [""; 0]);
    assert!(!place.world.path("hf").exists());
}

#[test]
fn a_request_says_nothing_but_the_program_and_its_version() {
    let place = Place::new();
    place.fetched();
    for request in place.server.requests() {
        let names: Vec<&str> = request.headers.keys().map(String::as_str).collect();
        assert_eq!(names, ["accept", "accept-encoding", "host", "user-agent"]);
        assert_eq!(request.headers["user-agent"], concat!("heirloom/", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn a_dropped_connection_is_resumed_where_it_stopped() {
    let place = Place::new();
    place.server.fault("/cdn/", Fault::DropAfter(1));
    place.server.fault(&sha256(&weights()), Fault::DropAfter(1_000_000));
    place.server.fault(&sha256(&weights()), Fault::DropAfter(500_000));
    place.fetched();
    assert_eq!(fs::read(place.blob(&weights())).unwrap(), weights());
    let ranges = place.ranges();
    assert_eq!(
        ranges,
        [None, Some("bytes=1000000-".to_owned()), Some("bytes=1500000-".to_owned())]
    );
}

#[test]
fn an_interrupted_download_is_gone_on_with_by_the_next_command() {
    let place = Place::new();
    let incomplete = format!("hf/hub/models--org--seed/blobs/{}.incomplete", sha256(&weights()));
    place.world.write(&incomplete, &weights()[..2_000_000]);
    let ran = place.fetched();
    assert_eq!(fs::read(place.blob(&weights())).unwrap(), weights());
    assert_eq!(place.ranges(), [Some("bytes=2000000-".to_owned())]);
    assert!(ran.stderr.contains("downloading the rest of model.safetensors"), "{}", ran.stderr);
}

#[test]
fn a_killed_download_leaves_nothing_in_place() {
    let place = Place::new();
    place.server.fault(&sha256(&weights()), Fault::Silence(Duration::from_secs(30)));
    let mut command = place.command(&["generate", &format!("hf://{REPO}"), "--prompt", "x"]);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "60").stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let incomplete = place.repo().join(format!("blobs/{}.incomplete", sha256(&weights())));
    for _ in 0..600 {
        if incomplete.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(incomplete.exists());
    assert!(!place.blob(&weights()).exists());
    assert!(!place.repo().join("refs/main").exists(), "a ref to what is not complete");
    place.fetched();
    assert_eq!(fs::read(place.blob(&weights())).unwrap(), weights());
}

#[test]
fn a_part_that_was_broken_is_thrown_away() {
    let place = Place::new();
    let incomplete = format!("hf/hub/models--org--seed/blobs/{}.incomplete", sha256(&weights()));
    place.world.write(&incomplete, vec![7; 1_000_000]);
    place.fetched();
    assert_eq!(fs::read(place.blob(&weights())).unwrap(), weights());
    assert_eq!(place.ranges(), [Some("bytes=1000000-".to_owned()), None]);
}

#[test]
fn a_server_without_ranges_starts_the_file_again() {
    let place = Place::new();
    place.server.fault(&sha256(&weights()), Fault::DropAfter(1_000_000));
    place.server.fault(&sha256(&weights()), Fault::WholeFile);
    place.fetched();
    assert_eq!(fs::read(place.blob(&weights())).unwrap(), weights());
}

#[test]
fn a_blob_whose_digest_is_wrong_never_lands() {
    let place = Place::new();
    for _ in 0..5 {
        place.server.fault(&sha256(&weights()), Fault::WrongBytes);
    }
    place.refused("`model.safetensors` of `org/seed` arrived with other content");
    let names = place.blobs();
    assert!(!names.iter().any(|name| name.starts_with(&sha256(&weights()))), "{names:?}");
    assert!(!place.snapshot().join("model.safetensors").exists());
    // A server that drops and lies in turn has no more chances than one that only lies.
    let place = Place::new();
    for _ in 0..3 {
        place.server.fault(&sha256(&weights()), Fault::DropAfter(2_900_000));
        place.server.fault(&sha256(&weights()), Fault::WrongBytes);
    }
    place.refused("arrived with other content than the hub promised");
    assert_eq!(place.ranges().len(), 4);
    // Small files have a digest of another kind.
    let place = Place::new();
    place.server.fault("config.json", Fault::WrongBytes);
    place.refused("arrived with other content than the hub promised");
}

#[test]
fn a_token_never_follows_a_redirect_to_another_host() {
    let place = Place::new().set("HF_TOKEN", "hf_secret");
    let ran = place.fetched();
    let requests = place.server.requests();
    let (hub, cdn): (Vec<_>, Vec<_>) =
        requests.iter().partition(|request| request.host == Host::Hub);
    assert!(hub.iter().all(|request| request.headers["authorization"] == "Bearer hf_secret"));
    assert!(!cdn.is_empty());
    for request in cdn {
        assert!(!request.headers.contains_key("authorization"), "{request:?}");
    }
    assert!(!ran.stderr.contains("hf_secret") && !ran.stderr.contains("signature"));
}

#[test]
fn a_token_comes_from_the_file_that_logging_in_wrote() {
    let place = Place::new();
    place.world.write("hf/token", "hf_from_file\n");
    place.fetched();
    let request = &place.server.requests()[0];
    assert_eq!(request.headers["authorization"], "Bearer hf_from_file");
}

#[test]
fn redirects_without_an_end_are_given_up() {
    let place = Place::new();
    for _ in 0..9 {
        let here = format!("/{REPO}/resolve/{}/config.json", place.commit);
        place.server.fault("config.json", Fault::Redirect(here));
    }
    place.refused("redirects more than 5 times");
}

#[test]
fn a_busy_hub_is_asked_again_when_it_says() {
    let place = Place::new();
    place.server.fault("/revision/", Fault::Status(503, "Retry-After: 0"));
    place.server.fault("/tree/", Fault::Status(429, "Retry-After: 0"));
    place.server.fault("config.json", Fault::Status(500, "Retry-After: 0"));
    place.fetched();
    for _ in 0..5 {
        place.server.fault("/revision/", Fault::Status(503, "Retry-After: 0"));
    }
    place.refused("answers with status 503");
}

#[test]
fn a_silent_server_is_asked_again() {
    let place = Place::new().set("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    place.server.fault(&sha256(&weights()), Fault::Silence(Duration::from_secs(4)));
    place.fetched();
    assert_eq!(place.ranges().len(), 2);
}

#[test]
fn refusals_say_what_to_do() {
    let place = Place::new();
    place.server.fault("/revision/", Fault::Status(403, "X-Error-Code: GatedRepo"));
    let gated = place.refused("`org/seed` is gated");
    assert!(
        gated.stderr.contains(&format!("accept its terms at `{}/org/seed`", place.server.endpoint))
    );
    place.server.fault("/revision/", Fault::Status(401, ""));
    place.refused("the hub has no model `org/seed`\n\nhint: check the name");
    let ran = place.heirloom(&["generate", "hf://org/other", "--prompt", "x"]);
    assert!(ran.stderr.contains("the hub has no model `org/other`"), "{}", ran.stderr);
    let ran = place.heirloom(&["generate", "hf://org/seed@v9", "--prompt", "x"]);
    assert!(ran.stderr.contains("`org/seed` has no revision `v9`"), "{}", ran.stderr);
    let place = place.set("HF_TOKEN", "old");
    let words = "X-Error-Message: Invalid credentials in Authorization header";
    place.server.fault("/revision/", Fault::Status(401, words));
    place.refused("the hub does not accept your token");
    let place = place.set("HF_ENDPOINT", "http://127.0.0.1:9");
    place.refused("cannot reach `http://127.0.0.1:9/api/models/org/seed/revision/main`");
}

#[test]
fn offline_uses_the_cache_alone() {
    let place = Place::new();
    place.fetched();
    place.server.requests();
    let place = place.set("HF_HUB_OFFLINE", "1");
    place.fetched();
    assert_eq!(place.paths(), [""; 0]);
    fs::remove_file(place.snapshot().join("model.safetensors")).unwrap();
    let cache = place.world.path("hf/hub");
    place.refused(&format!(
        "error: `model.safetensors` of `hf://org/seed@main` is not in the cache `{}`, and \
         `HF_HUB_OFFLINE` forbids to ask the hub\n\n\
         hint: unset `HF_HUB_OFFLINE` and run the same command again to download it\n",
        cache.display()
    ));
    assert_eq!(place.paths(), [""; 0]);
}

fn tree(name: &str, size: u64) -> String {
    let oid = "a".repeat(40);
    format!("[{{\"type\":\"file\",\"oid\":\"{oid}\",\"size\":{size},\"path\":\"{name}\"}}]")
}

#[test]
fn a_file_name_that_leaves_the_folder_is_refused() {
    for name in ["../../outside", "/etc/cron.d/x", "a/../../b", "a\\\\b"] {
        let place = Place::new();
        place.server.fault("/tree/", Fault::Says(tree(name, 1)));
        place.refused("has a file name that leaves its folder");
        assert!(!place.world.path("hf").exists(), "{name}");
    }
}

#[test]
fn an_absurd_size_is_refused() {
    let place = Place::new();
    place.server.fault("/tree/", Fault::Says(tree("config.json", 1 << 50)));
    place.refused("`config.json` of `org/seed` has 1125899906842624, more than");
}

#[test]
fn a_disk_that_is_too_small_is_said_before_the_download() {
    let mut files = seedling();
    let shards: Vec<String> = (0..64).map(|index| format!("m-{index}.safetensors")).collect();
    let places: Vec<String> = shards.iter().map(|name| format!("\"{name}\": \"{name}\"")).collect();
    let index = format!("{{\"weight_map\": {{{}}}}}", places.join(", "));
    files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
    files.extend(shards.iter().map(|name| (name.clone(), name.as_bytes().to_vec())));
    let place = Place::with(files);
    place.server.claim(1 << 40);
    let ran = place.refused("70368744177664 bytes are to be downloaded, but only ");
    assert!(ran.stderr.contains("set `HF_HOME` to a folder on a larger disk"), "{}", ran.stderr);
    assert!(!place.paths().iter().any(|path| path.contains("m-0.safetensors")));
}

#[test]
fn a_listing_that_comes_back_to_itself_is_refused() {
    let place = Place::new();
    let url = format!("{}/api/models/{REPO}/tree/{}?cursor=4", place.server.endpoint, place.commit);
    place.server.fault("/tree/", Fault::NextPage(url.clone()));
    place.server.fault("/tree/", Fault::NextPage(url));
    place.refused("the listing of `org/seed` comes back to a page that it already had");
}

#[test]
fn a_listing_that_goes_on_elsewhere_is_refused() {
    let place = Place::new().set("HF_TOKEN", "hf_secret");
    place.server.fault("/tree/", Fault::NextPage("https://evil.example/next".to_owned()));
    place.refused("redirects to `https://evil.example/next`, which is not followed");
}

#[test]
fn something_else_than_a_hub_is_recognised() {
    let place = Place::new();
    place.server.fault("/revision/", Fault::Says("<html>Please log in</html>".to_owned()));
    place.refused("answers with something else than the hub's description of a revision");
    place.server.fault("/revision/", Fault::Says("{\"sha\": \"../../x\"}".to_owned()));
    place.refused("answers with something else than the hub's description of a revision");
}

#[test]
fn pickled_weights_are_refused_with_the_reason() {
    let mut files = seedling();
    files.insert("pytorch_model.bin".to_owned(), b"pickle".to_vec());
    let place = Place::with(files);
    let ran = place.refused("only in `pytorch_model.bin`, a pickle file, which can run code");
    assert!(ran.stderr.contains("hint: choose a revision with safetensors"));
}

#[test]
fn only_the_shards_of_the_index_are_fetched() {
    let mut files = seedling();
    let index = "{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-2.safetensors\"}}";
    files.insert("model.safetensors.index.json".to_owned(), index.as_bytes().to_vec());
    for name in ["m-1.safetensors", "m-2.safetensors", "consolidated.safetensors"] {
        files.insert(name.to_owned(), name.as_bytes().to_vec());
    }
    let place = Place::with(files);
    place.fetched();
    assert!(place.snapshot().join("m-2.safetensors").is_file());
    assert!(!place.snapshot().join("consolidated.safetensors").exists());
    place.server.requests();
    place.fetched();
    assert_eq!(place.paths().len(), 1);
}

#[test]
fn two_commands_at_once_share_one_download() {
    let place = Place::new();
    std::thread::scope(|scope| {
        let one = scope.spawn(|| place.fetched());
        let two = scope.spawn(|| place.fetched());
        one.join().unwrap();
        two.join().unwrap();
    });
    assert_eq!(place.ranges().len(), 1);
    assert_eq!(fs::read(place.blob(&weights())).unwrap(), weights());
}

#[test]
fn check_needs_no_weights_and_says_how_large_they_are() {
    let place = Place::new();
    let recipe = format!(
        "{}\n",
        RECIPE
            .replace("base, from_scratch: true", &format!("hf://{REPO}"))
            .replace("adapter: full", "adapter: { lora: { rank: 4, alpha: 8 } }")
    );
    place.world.write("recipe.yaml", &recipe);
    let ran = place.heirloom(&["check", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains(&format!("base        hf://{REPO}@{}", place.commit)),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("weights     2.9 MiB to download, and not looked at yet"));
    assert!(!place.blob(&weights()).exists());
    assert!(place.snapshot().join("tokenizer.json").is_file());
    let ran = place.heirloom(&["check", "recipe.yaml", "--format", "json"]);
    assert!(ran.stdout.contains("\"download_bytes\": 3000000"), "{}", ran.stdout);
}

#[test]
fn a_problem_with_the_hub_stands_at_its_key() {
    let place = Place::new();
    place.world.write("recipe.yaml", RECIPE.replace("model: base", "model: hf://org/seed@v9"));
    let ran = place.heirloom(&["check", "recipe.yaml"]);
    assert!(
        ran.stderr.contains("recipe.yaml:3:16: `org/seed` has no revision `v9`"),
        "{}",
        ran.stderr
    );
    place.world.write("recipe.yaml", RECIPE.replace("model: base", "model: hf://org/seed/x"));
    let ran = place.heirloom(&["check", "recipe.yaml"]);
    assert!(ran.stderr.contains("recipe.yaml:3:16: `base.model` is no model"), "{}", ran.stderr);
}

/// A run is begun with a branch, which then moves: the run stays where it began.
#[test]
fn a_run_keeps_the_commit_that_it_began_with() {
    let place = Place::with(seedling());
    let ran = place.heirloom(&["train", "recipe.yaml"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let pinned = format!("hf://{REPO}@{}", place.commit);
    let resolved = place.world.read("runs/small/recipe.yaml");
    assert!(resolved.contains(&pinned), "{resolved}");
    let lock: serde_json::Value =
        serde_json::from_str(&place.world.read("runs/small/recipe.lock")).unwrap();
    assert_eq!(lock["hub"]["model"], format!("hf://{REPO}@main"));
    assert_eq!(lock["hub"]["commit"], place.commit.as_str());
    assert_eq!(lock["base"][1]["path"], format!("{pinned}/config.json"));
    let config = seedling()["config.json"].clone();
    assert_eq!(lock["base"][1]["sha256"], sha256(&config));

    let mut moved = seedling();
    moved.insert("config.json".to_owned(), b"{}".to_vec());
    place.server.commit("main", moved);
    place.server.requests();
    let ran = place.heirloom(&["train", "recipe.yaml", "--resume"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert_eq!(place.paths(), [""; 0]);

    // The cache may be emptied meanwhile: the same commit comes back.
    fs::remove_dir_all(place.world.path("hf")).unwrap();
    let ran = place.heirloom(&["train", "recipe.yaml", "--resume"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(
        place.paths().iter().all(|path| path.contains(&place.commit) || path.contains("/cdn/"))
    );

    // And what was tampered with in the cache is found.
    let config = place.snapshot().join("config.json");
    fs::remove_file(&config).unwrap();
    fs::write(&config, "{ }").unwrap();
    let ran = place.heirloom(&["train", "recipe.yaml", "--resume"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains(&format!("`{pinned}/config.json` has changed")), "{}", ran.stderr);
}
