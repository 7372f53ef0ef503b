//! What was asked for, as provenance tells it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, Weak},
};

use llb::pb;
use prost::Message as _;
use serde_json::{Map, Value};

use super::{Asked, Scope, capture::Sources, json::Object};

/// Options that say something of the machine, not of the result.
const HOST_OPTIONS: [&str; 4] =
    ["cgroup-parent", "image-resolve-mode", "platform", "cache-imports"];

/// Where the main input came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ConfigSource {
    pub uri: String,
    pub digest: BTreeMap<String, String>,
    pub path: String,
}

/// A frontend run with its source.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Request {
    pub source: ConfigSource,
    pub parameters: Parameters,
}

/// A secret or an agent that steps could use.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grant {
    pub id: String,
    pub optional: bool,
}

/// Parameters of a frontend run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Parameters {
    pub frontend: String,
    pub args: BTreeMap<String, String>,
    pub secrets: Vec<Grant>,
    pub ssh: Vec<Grant>,
    pub locals: Vec<String>,
    pub inputs: BTreeMap<String, Request>,
    pub root: Option<Box<Request>>,
    pub compatibility: u32,
}

impl Parameters {
    /// Leaves out what mode `min` leaves out; whether that was something of weight.
    pub(crate) fn scrub(&mut self) -> bool {
        let all = self.args.len();
        self.args.retain(|key, _| !key.starts_with("build-arg:") && !key.starts_with("label:"));
        let mut incomplete = self.args.len() < all;
        self.secrets.clear();
        self.ssh.clear();
        for input in self.inputs.values_mut() {
            incomplete |= input.parameters.scrub();
        }
        if let Some(root) = &mut self.root {
            incomplete |= root.parameters.scrub();
        }
        incomplete
    }

    pub(crate) fn to_json(&self) -> Value {
        let grants = |list: &[Grant]| -> Vec<Value> {
            let each = list.iter().map(|grant| {
                let mut object = Map::from_iter([("id".to_owned(), grant.id.clone().into())]);
                object.flag("optional", grant.optional);
                Value::Object(object)
            });
            each.collect()
        };
        let mut object = Map::new();
        object.text("frontend", &self.frontend);
        object.texts("args", &self.args);
        object.list("secrets", grants(&self.secrets));
        object.list("ssh", grants(&self.ssh));
        let local = |name: &String| serde_json::json!({ "name": name });
        object.list("locals", self.locals.iter().map(local).collect());
        if !self.inputs.is_empty() {
            let inputs = self.inputs.iter().map(|(name, input)| (name.clone(), input.to_json()));
            object.insert("inputs".into(), Value::Object(inputs.collect()));
        }
        if let Some(root) = &self.root {
            object.insert("root".into(), root.to_json());
        }
        object.number("compatibilityVersion", i64::from(self.compatibility));
        Value::Object(object)
    }
}

impl ConfigSource {
    pub(crate) fn to_json(&self, path: &str) -> Value {
        let mut object = Map::new();
        object.text("uri", &self.uri);
        object.texts("digest", &self.digest);
        object.text(path, &self.path);
        Value::Object(object)
    }
}

impl Request {
    /// What `frontend` with these options (see [`shown_options`]) asks for.
    pub(crate) fn new(
        frontend: &str,
        mut args: BTreeMap<String, String>,
        sources: &Sources,
    ) -> Self {
        let given = |args: &BTreeMap<String, String>, key: &str| {
            args.get(key).is_some_and(|value| !value.is_empty())
        };
        let context = match args.get("contextkey").filter(|key| !key.is_empty()) {
            Some(key) => key.clone(),
            None if given(&args, "input:context") => "input:context".to_owned(),
            None => "context".to_owned(),
        };
        let mut source = ConfigSource::default();
        if given(&args, &context) {
            let text = args.remove(&context).unwrap_or_default();
            match sources.find(&text) {
                Some((uri, digest)) => (source.uri, source.digest) = (uri, digest),
                None => source.uri = text,
            }
            source.uri = redact(&source.uri);
        }
        if given(&args, "filename") {
            source.path = args.remove("filename").unwrap_or_default();
        }
        let parameters =
            Parameters { frontend: frontend.to_owned(), args, ..Parameters::default() };
        Self { source, parameters }
    }

    fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("configSource".into(), self.source.to_json("path"));
        object.insert("request".into(), self.parameters.to_json());
        Value::Object(object)
    }
}

/// Options of a frontend as provenance shows them.
pub(crate) fn shown_options(options: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let context = options.get("contextkey").filter(|key| !key.is_empty());
    let context = context.map_or("context", String::as_str);
    let shown = options
        .iter()
        .filter(|(key, _)| !HOST_OPTIONS.contains(&key.as_str()) && !key.starts_with("attest:"));
    let shown = shown.map(|(key, value)| {
        let is_context = key == context || key.starts_with("context:");
        (key.clone(), if is_context { redact(value) } else { value.clone() })
    });
    shown.collect()
}

/// Hides user and password of a URL.
pub(crate) fn redact(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((user, host)) = authority.rsplit_once('@') else { return text.to_owned() };
    let hidden = match user.split_once(':') {
        Some(("", _)) => ":xxxxx",
        Some(_) => "xxxxx:xxxxx",
        None if user.is_empty() => return text.to_owned(),
        None => "xxxxx",
    };
    format!("{scheme}://{hidden}@{host}{path}")
}

/// What was asked for to make each graph, as long as its build lives: builds that take another
/// build's result as an input say so.
#[derive(Default)]
pub(crate) struct Requests(Mutex<HashMap<String, Vec<(Weak<Scope>, Request)>>>);

impl Requests {
    /// Remembers what led to `definition`.
    pub(crate) fn add(&self, definition: &pb::Definition, scope: &Arc<Scope>, sources: &Sources) {
        let (Some(head), Some(request)) = (head(definition), self.of_scope(scope, sources)) else {
            return;
        };
        let mut known = self.0.lock().expect("no panic while holding requests");
        known.retain(|_, list| {
            list.retain(|(scope, _)| scope.strong_count() > 0);
            !list.is_empty()
        });
        known.entry(head).or_default().push((Arc::downgrade(scope), request));
    }

    /// What the owner of a scope was asked for.
    fn of_scope(&self, scope: &Scope, sources: &Sources) -> Option<Request> {
        let asked = scope.asked.as_ref()?;
        let mut request = self.of(asked, sources);
        request.parameters.root = self.root(scope, sources, &request).map(Box::new);
        Some(request)
    }

    fn of(&self, asked: &Asked, sources: &Sources) -> Request {
        let mut request = Request::new(&asked.frontend, shown_options(&asked.options), sources);
        request.parameters.inputs = self.inputs(asked);
        request
    }

    /// The first request, if it says more than `request`, its result.
    pub(crate) fn root(
        &self,
        scope: &Scope,
        sources: &Sources,
        request: &Request,
    ) -> Option<Request> {
        let root = self.of(scope.root.as_ref()?, sources);
        let Parameters { frontend, args, inputs, .. } = &root.parameters;
        let silent = frontend.is_empty() && args.is_empty() && inputs.is_empty();
        (!silent && root != *request).then_some(root)
    }

    /// What made the inputs, as far as it is known and clear.
    pub(crate) fn inputs(&self, asked: &Asked) -> BTreeMap<String, Request> {
        let known = self.0.lock().expect("no panic while holding requests");
        let found = asked.inputs.iter().filter_map(|(name, definition)| {
            let mut requests = known
                .get(&head(definition)?)?
                .iter()
                .filter(|(scope, _)| scope.strong_count() > 0)
                .map(|(_, request)| {
                    let mut request = request.clone();
                    request.parameters.root = None;
                    request
                });
            let first = requests.next()?;
            requests.all(|other| other == first).then_some((name.clone(), first))
        });
        found.collect()
    }
}

/// The vertex a definition stands for.
fn head(definition: &pb::Definition) -> Option<String> {
    let terminal = pb::Op::decode(definition.def.last()?.clone()).ok()?;
    Some(terminal.inputs.first()?.digest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_hidden() {
        for (text, shown) in [
            ("https://user:word@h.io/p.git#x", "https://xxxxx:xxxxx@h.io/p.git#x"),
            ("ssh://git@h.io/p", "ssh://xxxxx@h.io/p"),
            ("https://:word@h.io", "https://:xxxxx@h.io"),
            ("git@h.io:a/b.git", "git@h.io:a/b.git"),
            ("https://h.io/a@b", "https://h.io/a@b"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }

    #[test]
    fn requests() {
        let options = [
            ("context", "https://u:p@h.io/x.tar"),
            ("filename", "Other"),
            ("platform", "linux/amd64"),
            ("attest:provenance", "mode=max"),
            ("build-arg:A", "1"),
            ("label:b", "2"),
            ("target", "t"),
        ];
        let options =
            options.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let mut request =
            Request::new("dockerfile.v0", shown_options(&options), &Sources::default());
        assert_eq!(request.source.uri, "https://xxxxx:xxxxx@h.io/x.tar");
        assert_eq!(request.source.path, "Other");
        let text = request.parameters.to_json().to_string();
        assert_eq!(
            text,
            r#"{"frontend":"dockerfile.v0","args":{"build-arg:A":"1","label:b":"2","target":"t"}}"#
        );
        assert!(request.parameters.scrub());
        assert_eq!(
            request.parameters.to_json().to_string(),
            r#"{"frontend":"dockerfile.v0","args":{"target":"t"}}"#
        );
    }
}
