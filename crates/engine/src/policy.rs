//! Source policies: which sources a build may use, and what takes their place.
//!
//! Each source op passes the build's own rules, those of the request that brought it, and last the
//! client's verifier if it named one. A rule allows, denies or rewrites; after a rewrite everything
//! is asked again. Invariant: no source is resolved, by a frontend's question or by a graph, that did
//! not pass. Source: control notes §9, session notes §13.

use std::{collections::HashMap, sync::Arc};

use frontend_api::{Code, FrontendError, SourceMetaRequest};
use llb::{
    pb::{self, op::Op},
    policy::{AttrConstraint, AttrMatch, MatchType, Policy, PolicyAction, Rule, Selector},
};
use netproxy::Verdict;
use prost::Message as _;
use proto::{
    frontend::ResolveSourceMetaResponse,
    moby::buildkit::v1::sourcepolicy::policysession::{
        CheckPolicyRequest, DecisionResponse, check_policy_response,
    },
};
use regex::Regex;
use serde_json::json;

use crate::{Engine, Job, bridge};

/// Rewrites of one source before we believe that they go in circles.
const MOST_REWRITES: usize = 20;
/// Questions to the client's verifier about one source.
const MOST_QUESTIONS: usize = 10;

/// Why a source may not be used, or a policy not be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("source {0:?} denied by policy: source denied by policy")]
    Denied(String),
    #[error("too many mutations on a single source: too many operations")]
    TooManyRewrites,
    #[error("invalid nil selector in policy")]
    NoSelector,
    #[error("missing destination for convert rule: {0:?}")]
    NoDestination(String),
    #[error("source policy: {text:?} is no pattern: {reason}")]
    Pattern { text: String, reason: String },
    #[error("source policy: unknown type of {what}: {value}")]
    Unknown { what: &'static str, value: i32 },
}

impl From<PolicyError> for FrontendError {
    fn from(error: PolicyError) -> Self {
        let code = match &error {
            PolicyError::Denied(_) => Code::PermissionDenied,
            _ => Code::InvalidArgument,
        };
        FrontendError::with_code(code, error.to_string())
    }
}

/// Refuses a policy that cannot be applied.
pub(crate) fn validate(policy: &Policy) -> Result<(), PolicyError> {
    match policy.rules.iter().any(|rule| rule.selector.is_none()) {
        true => Err(PolicyError::NoSelector),
        false => Ok(()),
    }
}

/// Passes `definition` through the policies of the job and `extra`; a copy if a source changed.
pub(crate) async fn apply(
    engine: &Engine,
    job: &Job,
    extra: &[Policy],
    definition: &pb::Definition,
) -> Result<Option<pb::Definition>, FrontendError> {
    let rules: Vec<&Policy> = job.policy.iter().chain(extra).collect();
    if rules.is_empty() && job.policy_session.is_empty() {
        return Ok(None);
    }
    // The verifier may want to see other sources before it decides about one: all are asked at once.
    let ops = definition.def.iter().enumerate().map(|(at, bytes)| {
        let rules = &rules;
        async move {
            let mut op = pb::Op::decode(bytes.clone()).map_err(|error| {
                FrontendError::new(format!("failed to parse llb proto op: {error}"))
            })?;
            let platform = op.platform.clone();
            let Some(Op::Source(source)) = &mut op.op else { return Ok(None) };
            let changed = check(engine, job, rules, source, platform.as_ref())
                .await
                .map_err(|error| error.context("error evaluating the source policy"))?;
            Ok::<_, FrontendError>(changed.then_some((at, op)))
        }
    });
    let replaced = futures_util::future::try_join_all(ops).await?;
    let replaced: HashMap<usize, pb::Op> = replaced.into_iter().flatten().collect();
    if replaced.is_empty() {
        return Ok(None);
    }
    let changed = llb::replace_ops(definition, replaced);
    changed.map(Some).map_err(|error| FrontendError::new(error.to_string()))
}

/// Applies the policies of builds to what their steps ask for through a proxy.
struct OfRequests {
    engine: Arc<Engine>,
    jobs: Vec<Arc<Job>>,
}

/// The policies of `jobs` for requests of a step; none if they have none.
pub(crate) fn of_requests(
    engine: Arc<Engine>,
    mut jobs: Vec<Arc<Job>>,
) -> Option<Arc<dyn netproxy::Policy>> {
    jobs.retain(|job| {
        let has_rules = job.policy.as_ref().is_some_and(|policy| !policy.rules.is_empty());
        has_rules || !job.policy_session.is_empty()
    });
    (!jobs.is_empty()).then(|| Arc::new(OfRequests { engine, jobs }) as _)
}

#[async_trait::async_trait]
impl netproxy::Policy for OfRequests {
    async fn check(&self, url: &str) -> Result<Verdict, String> {
        let mut source = pb::SourceOp { identifier: url.to_owned(), ..Default::default() };
        for job in &self.jobs {
            let rules: Vec<&Policy> = job.policy.iter().collect();
            check(&self.engine, job, &rules, &mut source, None)
                .await
                .map_err(|error| error.message)?;
        }
        if source.identifier == url && source.attrs.is_empty() {
            return Ok(Verdict::Allow);
        }
        Ok(Verdict::Convert { url: source.identifier, has_attributes: !source.attrs.is_empty() })
    }
}

/// Passes one source; true if it was rewritten.
pub(crate) async fn check(
    engine: &Engine,
    job: &Job,
    rules: &[&Policy],
    source: &mut pb::SourceOp,
    platform: Option<&pb::Platform>,
) -> Result<bool, FrontendError> {
    if rules.is_empty() && job.policy_session.is_empty() {
        return Ok(false);
    }
    let before = source.clone();
    let mut questions = 0;
    let rewritten = loop {
        let rewritten = evaluate(rules, source)?;
        if job.policy_session.is_empty() {
            break rewritten;
        }
        match ask(engine, job, rules, source, platform, &mut questions).await? {
            None => break rewritten || *source != before,
            Some(update) => *source = update,
        }
    };
    Ok(rewritten && *source != before)
}

/// The verdict of the client's verifier: another source, or that this one may pass.
async fn ask(
    engine: &Engine,
    job: &Job,
    rules: &[&Policy],
    source: &pb::SourceOp,
    platform: Option<&pb::Platform>,
    questions: &mut usize,
) -> Result<Option<pb::SourceOp>, FrontendError> {
    let failed = |error: session::SessionError| {
        FrontendError::new(format!("ask the client's source policy: {error}"))
    };
    let session = engine.machine.sessions.get(&job.policy_session).await.map_err(failed)?;
    let mut known =
        ResolveSourceMetaResponse { source: Some(source.clone()), ..Default::default() };
    loop {
        *questions += 1;
        if *questions > MOST_QUESTIONS {
            return Err(FrontendError::new("too many policy requests"));
        }
        let request = CheckPolicyRequest {
            platform: platform.cloned(),
            source: Some(known.clone()),
            ..Default::default()
        };
        let answer = session.check_policy(request).await.map_err(failed)?;
        match answer.result {
            Some(check_policy_response::Result::Decision(decision)) => {
                return decide(source, decision);
            }
            Some(check_policy_response::Result::Request(mut wanted)) => {
                let asked = wanted.source.take().unwrap_or_default();
                if asked.identifier != source.identifier {
                    return Err(FrontendError::new(format!(
                        "policy requested different source identifier: {:?} != {:?}",
                        asked.identifier, source.identifier
                    )));
                }
                if asked.attrs != source.attrs {
                    return Err(FrontendError::new("policy requested different source attrs"));
                }
                let mut question: SourceMetaRequest = gateway::wire::meta_request(wanted, asked);
                evaluate(rules, &mut question.source)?;
                let meta = bridge::metadata(engine, job, question).await.map_err(|error| {
                    error.context("error resolving source metadata from policy request")
                })?;
                known = gateway::wire::meta_response(meta);
            }
            None => return Err(FrontendError::new("no decision in policy response")),
        }
    }
}

fn decide(
    source: &pb::SourceOp,
    decision: DecisionResponse,
) -> Result<Option<pb::SourceOp>, FrontendError> {
    match decision.action() {
        PolicyAction::Allow => Ok(None),
        PolicyAction::Convert => match decision.update {
            Some(update) => Ok(Some(update)),
            None => Err(FrontendError::new("convert action requires updated source")),
        },
        PolicyAction::Deny => {
            let text = format!("source {:?} not allowed by policy: action DENY", source.identifier);
            let error = FrontendError::with_code(Code::PermissionDenied, text);
            if decision.deny_messages.is_empty() {
                return Err(error);
            }
            let messages: Vec<_> = decision
                .deny_messages
                .iter()
                .map(|message| json!({"message": message.message}))
                .collect();
            Err(error.detail(
                "github.com/moby/buildkit/policysession.DecisionResponse+json",
                base::gojson::to_vec(&json!({"action": 1, "denyMessages": messages})),
            ))
        }
    }
}

/// Applies the rules until none of them changes anything.
fn evaluate(policies: &[&Policy], source: &mut pb::SourceOp) -> Result<bool, PolicyError> {
    let before = source.clone();
    // Rules are written for complete names.
    source.identifier = source::normal_identifier(source);
    let normal = source.clone();
    for _ in 0..=MOST_REWRITES {
        let mut changed = false;
        for policy in policies {
            changed = evaluate_one(policy, source)?;
            if changed {
                break;
            }
        }
        if !changed {
            if *source == normal {
                *source = before;
                return Ok(false);
            }
            return Ok(true);
        }
    }
    Err(PolicyError::TooManyRewrites)
}

/// True if a rule changed the source: then the rest is not asked.
fn evaluate_one(policy: &Policy, source: &mut pb::SourceOp) -> Result<bool, PolicyError> {
    let identifier = source.identifier.clone();
    let mut denied = false;
    for rule in &policy.rules {
        let selector = rule.selector.as_ref().ok_or(PolicyError::NoSelector)?;
        if !matches(selector, &identifier, source)? {
            continue;
        }
        match PolicyAction::try_from(rule.action) {
            Ok(PolicyAction::Allow) => denied = false,
            Ok(PolicyAction::Deny) => denied = true,
            Ok(PolicyAction::Convert) => {
                if convert(rule, selector, &identifier, source)? {
                    return Ok(true);
                }
            }
            Err(_) => {
                return Err(PolicyError::Unknown { what: "action", value: rule.action });
            }
        }
    }
    if denied { Err(PolicyError::Denied(identifier)) } else { Ok(false) }
}

fn matches(
    selector: &Selector,
    identifier: &str,
    source: &pb::SourceOp,
) -> Result<bool, PolicyError> {
    for constraint in &selector.constraints {
        if !holds(constraint, source)? {
            return Ok(false);
        }
    }
    if selector.identifier == identifier {
        return Ok(true);
    }
    Ok(match pattern(selector)? {
        Some(pattern) => pattern.is_match(identifier),
        None => false,
    })
}

fn holds(constraint: &AttrConstraint, source: &pb::SourceOp) -> Result<bool, PolicyError> {
    let value = source.attrs.get(&constraint.key).map_or("", String::as_str);
    match AttrMatch::try_from(constraint.condition) {
        Ok(AttrMatch::Equal) => Ok(value == constraint.value),
        Ok(AttrMatch::Notequal) => Ok(value != constraint.value),
        Ok(AttrMatch::Matches) => Ok(regex(&constraint.value)?.is_match(value)),
        Err(_) => {
            Err(PolicyError::Unknown { what: "attribute condition", value: constraint.condition })
        }
    }
}

fn regex(text: &str) -> Result<Regex, PolicyError> {
    Regex::new(text)
        .map_err(|error| PolicyError::Pattern { text: text.to_owned(), reason: error.to_string() })
}

/// What a selector matches beside its own text; each `*` of a wildcard is a group.
fn pattern(selector: &Selector) -> Result<Option<Regex>, PolicyError> {
    match MatchType::try_from(selector.match_type) {
        Ok(MatchType::Exact) => Ok(None),
        Ok(MatchType::Regex) => regex(&selector.identifier).map(Some),
        Ok(MatchType::Wildcard) => {
            if selector.identifier.contains("**") {
                return Err(PolicyError::Pattern {
                    text: selector.identifier.clone(),
                    reason: "`**` has no meaning in it".to_owned(),
                });
            }
            let parts: Vec<String> = selector.identifier.split('*').map(regex::escape).collect();
            regex(&format!("^{}$", parts.join("(.*)"))).map(Some)
        }
        Err(_) => Err(PolicyError::Unknown { what: "match type", value: selector.match_type }),
    }
}

fn convert(
    rule: &Rule,
    selector: &Selector,
    identifier: &str,
    source: &mut pb::SourceOp,
) -> Result<bool, PolicyError> {
    let updates =
        rule.updates.as_ref().ok_or_else(|| PolicyError::NoDestination(identifier.to_owned()))?;
    let template = match updates.identifier.as_str() {
        "" => &selector.identifier,
        template => template,
    };
    let wanted = match (pattern(selector)?, selector.match_type()) {
        (None, _) => template.to_owned(),
        (Some(pattern), MatchType::Regex) => pattern.replace_all(identifier, template).into_owned(),
        (Some(pattern), _) => match pattern.captures(identifier) {
            None => identifier.to_owned(),
            Some(groups) => {
                let mut wanted = String::new();
                groups.expand(template, &mut wanted);
                wanted
            }
        },
    };
    let before = source.clone();
    if !wanted.is_empty() {
        source.identifier = wanted;
    }
    for (key, value) in &updates.attrs {
        source.attrs.insert(key.clone(), value.clone());
    }
    Ok(*source != before)
}

/// The policies a nested graph has to pass, and the entitlements it may use.
pub(crate) async fn admit(
    engine: &Engine,
    job: &Job,
    definition: &pb::Definition,
) -> Result<llb::Definition, FrontendError> {
    let changed = apply(engine, job, &[], definition).await?;
    parse(engine, job, changed.as_ref().unwrap_or(definition))
}

/// Checks a graph that passed the policies.
pub(crate) fn parse(
    engine: &Engine,
    job: &Job,
    definition: &pb::Definition,
) -> Result<llb::Definition, FrontendError> {
    let options = llb::ParseOptions {
        default_platform: &engine.worker().platforms[0],
        capabilities: Some(crate::capabilities::LLB),
        proxy_network: job.proxy_network,
    };
    let definition = llb::Definition::parse(definition, &options)
        .map_err(|error| FrontendError::new(error.to_string()))?;
    for vertex in definition.vertices() {
        if let Some(entitlement) = ops::needed_entitlement(vertex)
            && !job.entitlements.contains(entitlement)
        {
            return Err(FrontendError::new(format!("{entitlement} is not allowed")));
        }
        let devices = &engine.machine.config.devices;
        devices
            .check(vertex, &job.entitlements)
            .map_err(|error| FrontendError::new(error.to_string()))?;
    }
    job.learn(&definition);
    Ok(definition)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules as `ACTION KIND SELECTOR [-> TARGET] [key=value…]`, sources as identifiers.
    fn policy(text: &str) -> Policy {
        let rules = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| {
            let (rule, updates) = line.split_once(" -> ").unwrap_or((line, ""));
            let words: Vec<&str> = rule.split_whitespace().collect();
            let action = match words[0] {
                "allow" => PolicyAction::Allow,
                "deny" => PolicyAction::Deny,
                _ => PolicyAction::Convert,
            };
            let kind = match words[1] {
                "exact" => MatchType::Exact,
                "regex" => MatchType::Regex,
                _ => MatchType::Wildcard,
            };
            let constraint = |word: &&str| {
                let (key, value) = word.split_once('=').unwrap();
                let (key, condition) = match key.strip_suffix('!') {
                    Some(key) => (key, AttrMatch::Notequal),
                    None => match key.strip_suffix('~') {
                        Some(key) => (key, AttrMatch::Matches),
                        None => (key, AttrMatch::Equal),
                    },
                };
                let (key, value) = (key.to_owned(), value.to_owned());
                AttrConstraint { key, value, condition: condition as i32 }
            };
            let mut update = llb::policy::Update::default();
            for word in updates.split_whitespace() {
                match word.split_once('=') {
                    Some((key, value)) => {
                        update.attrs.insert(key.into(), value.into());
                    }
                    None => update.identifier = word.into(),
                }
            }
            Rule {
                action: action as i32,
                selector: Some(Selector {
                    identifier: words[2].into(),
                    match_type: kind as i32,
                    constraints: words[3..].iter().map(constraint).collect(),
                }),
                updates: (!updates.is_empty()).then_some(update),
            }
        });
        Policy { version: 1, rules: rules.collect() }
    }

    fn check(rules: &str, source: &str, expected: &str) {
        let mut words = source.split_whitespace();
        let mut op = pb::SourceOp {
            identifier: words.next().unwrap().into(),
            attrs: words
                .filter_map(|word| word.split_once('='))
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        };
        let outcome = match evaluate(&[&policy(rules)], &mut op) {
            Err(error) => error.to_string(),
            Ok(false) => "same".into(),
            Ok(true) => {
                let attrs = op.attrs.iter().map(|(key, value)| format!(" {key}={value}"));
                format!("{}{}", op.identifier, attrs.collect::<String>())
            }
        };
        assert_eq!(outcome, expected, "{source} under {rules}");
    }

    #[test]
    fn last_word_wins_and_names_are_complete() {
        let image = "docker-image://docker.io/library/alpine:latest";
        let denied = format!("source {image:?} denied by policy: source denied by policy");
        check("", image, "same");
        check("deny exact docker-image://docker.io/library/alpine:latest", image, &denied);
        check("deny wildcard docker-image://*", "docker-image://alpine", &denied);
        check("deny wildcard docker-image://*\n allow regex alpine", image, "same");
        check("allow regex alpine\n deny wildcard docker-image://*", image, &denied);
        check("deny exact docker-image://docker.io/library/other:latest", image, "same");
        check(
            "deny wildcard a**b",
            image,
            "source policy: \"a**b\" is no pattern: `**` has no meaning in it",
        );
    }

    #[test]
    fn sources_are_replaced() {
        let golang = "docker-image://docker.io/library/golang:1.19";
        check(
            "convert wildcard docker-image://docker.io/library/golang:* -> docker-image://docker.io/library/golang:${1}-alpine\n\
             deny wildcard *x",
            "docker-image://docker.io/library/golang:1.19-x",
            "too many mutations on a single source: too many operations",
        );
        check(
            "convert exact docker-image://docker.io/library/golang:1.19 -> docker-image://mirror/go:1",
            golang,
            "docker-image://mirror/go:1",
        );
        check(
            "convert regex ^docker-image://docker.io/([a-z]+)/ -> docker-image://mirror.example/$1/",
            golang,
            "docker-image://mirror.example/library/golang:1.19",
        );
        check(
            "convert exact https://host/file -> http.checksum=sha256:00",
            "https://host/file",
            "https://host/file http.checksum=sha256:00",
        );
        check(
            "convert exact https://host/file -> https://host/other\n deny exact https://host/other",
            "https://host/file",
            "source \"https://host/other\" denied by policy: source denied by policy",
        );
        check(
            "convert exact https://host/file",
            "https://host/file",
            "missing destination for convert rule: \"https://host/file\"",
        );
    }

    #[test]
    fn attributes_narrow_a_rule() {
        let source = "https://host/file http.checksum=sha256:aa";
        let denied = "source \"https://host/file\" denied by policy: source denied by policy";
        check("deny wildcard https://* http.checksum=", source, "same");
        check("deny wildcard https://* http.checksum=", "https://host/file", denied);
        check("deny wildcard https://* http.checksum!=sha256:bb", source, denied);
        check("deny wildcard https://* http.checksum~=^sha256:a+$", source, denied);
    }
}
