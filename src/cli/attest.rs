//! `--provenance` and `--attest`.

/// What the flags ask for: the builder's id when provenance is wanted, else `None`.
///
/// # Errors
/// The message: a kind, mode or version that isn't there.
pub(super) fn provenance(
    provenance: Option<&str>,
    attest: &[String],
) -> Result<Option<String>, String> {
    let mut wanted = None;
    for text in attest {
        let (mut kind, mut rest) = (None, Vec::new());
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("type", value)) => kind = Some(value),
                _ => rest.push(field),
            }
        }
        match kind {
            Some("provenance") => wanted = one(&rest, &format!("--attest {text}"))?,
            Some("sbom") => {
                return Err(format!("--attest {text}: bills of materials are not there yet"));
            }
            _ => return Err(format!("--attest {text}: type=provenance is expected")),
        }
    }
    if let Some(text) = provenance {
        let fields: Vec<&str> = text.split(',').collect();
        wanted = one(&fields, &format!("--provenance {text}"))?;
    }
    Ok(wanted)
}

fn one(fields: &[&str], flag: &str) -> Result<Option<String>, String> {
    let mut builder = Some(String::new());
    for field in fields {
        match field.split_once('=').unwrap_or((field, "")) {
            ("" | "true" | "1", "") | ("mode", "min") | ("version", "v1") => {}
            ("disabled", "false") => {}
            ("false" | "0", "") | ("disabled", "" | "true") => builder = None,
            ("builder-id", id) => builder = builder.map(|_| id.to_owned()),
            ("mode", "max") => {
                return Err(format!(
                    "{flag}: mode=max is not there; mode=min tells no arguments, which max would"
                ));
            }
            ("version", _) => return Err(format!("{flag}: version=v1 is the only one")),
            _ => {
                return Err(format!(
                    "{flag}: `{field}` is unknown; mode=min, version=v1 and builder-id are known"
                ));
            }
        }
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_is_asked_for_in_several_ways() {
        let flag = |text: &str| provenance(Some(text), &[]);
        let attest = |text: &str| provenance(None, &[text.to_owned()]);
        for text in ["true", "1", "mode=min", "mode=min,version=v1"] {
            assert_eq!(flag(text), Ok(Some(String::new())), "{text}");
        }
        assert_eq!(flag("mode=min,builder-id=http://b"), Ok(Some("http://b".to_owned())));
        assert_eq!(attest("type=provenance,mode=min"), Ok(Some(String::new())));
        assert_eq!(flag("false"), Ok(None));
        assert_eq!(attest("type=provenance,disabled=true"), Ok(None));
        assert_eq!(provenance(None, &[]), Ok(None));
        for bad in ["mode=max", "mode=mid", "version=v0.2", "colour=red"] {
            assert!(flag(bad).is_err(), "{bad}");
        }
        for bad in ["type=sbom", "mode=min", ""] {
            assert!(attest(bad).is_err(), "{bad}");
        }
    }
}
