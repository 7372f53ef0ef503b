//! Identifiers of sources in the one form that rules are written for.

use llb::pb;

/// The identifier with what may be left out put in: the registry and tag of an image, the host of a
/// git repository without user and transport. What cannot be read stays as it is.
pub fn normal_identifier(source: &pb::SourceOp) -> String {
    let identifier = source.identifier.as_str();
    let normal = match identifier.split_once("://") {
        Some(("docker-image", rest)) => oci::Reference::parse(rest)
            .ok()
            .map(|reference| format!("docker-image://{}", reference.with_default_tag())),
        Some(("git", rest)) => git(rest, source.attrs.get("git.fullurl").map(String::as_str)),
        _ => None,
    };
    normal.unwrap_or_else(|| identifier.to_owned())
}

fn git(rest: &str, full: Option<&str>) -> Option<String> {
    let (plain, fragment) = match rest.split_once('#') {
        Some((plain, fragment)) => (plain, Some(fragment)),
        None => (rest, None),
    };
    let remote = full.filter(|full| !full.is_empty()).unwrap_or(plain);
    let remote = remote.split('#').next().unwrap_or(remote);
    let address = match remote.split_once("://") {
        Some((_, address)) => address.to_owned(),
        // The short form of ssh: user@host:path.
        None => match remote.split_once(':') {
            Some((host, path)) if host.contains('@') => {
                format!("{host}/{}", path.trim_start_matches('/'))
            }
            _ => remote.to_owned(),
        },
    };
    let (authority, path) = address.split_once('/').unwrap_or((&address, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let mut normal = format!("git://{host}{}", base::path::absolute(path));
    // Folders are written without detours, as a checkout takes them.
    let (reference, folder) = fragment
        .unwrap_or_default()
        .split_once(':')
        .unwrap_or_else(|| (fragment.unwrap_or_default(), ""));
    let folder = base::path::absolute(folder);
    match (reference, folder.trim_start_matches('/')) {
        ("", "") => {}
        (reference, "") => normal.push_str(&format!("#{reference}")),
        (reference, folder) => normal.push_str(&format!("#{reference}:{folder}")),
    }
    Some(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_completed() {
        let check = |identifier: &str, full: &str, expected: &str| {
            let mut source = pb::SourceOp { identifier: identifier.into(), ..Default::default() };
            if !full.is_empty() {
                source.attrs.insert("git.fullurl".into(), full.into());
            }
            assert_eq!(normal_identifier(&source), expected);
        };
        let alpine = "docker-image://docker.io/library/alpine:latest";
        check("docker-image://alpine", "", alpine);
        check(alpine, "", alpine);
        check("docker-image://host:5000/a/b:1", "", "docker-image://host:5000/a/b:1");
        check("local://context", "", "local://context");
        check("https://h/x#y", "", "https://h/x#y");
        let normal = "git://example.com/a/b.git#main:dir";
        check("git://example.com/a/b.git#main:dir", "", normal);
        check("git://example.com/a/b.git#main:dir", "https://me:pw@example.com/a/b.git", normal);
        check("git://git@example.com:a/b.git#main:dir", "git@example.com:a/b.git", normal);
        check("git://example.com/a/b.git#main:../x/../dir/", "", normal);
        check("git://example.com/a/b.git#main:", "", "git://example.com/a/b.git#main");
        check(
            "git://example.com/a/b.git",
            "ssh://git@example.com/a/b.git",
            "git://example.com/a/b.git",
        );
    }
}
