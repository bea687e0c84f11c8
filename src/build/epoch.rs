//! The time that SOURCE_DATE_EPOCH names, found before anything is placed or built: it is
//! in the bytes of layers, and a stage may ask for it by ARG.

use super::Error;
use super::remote::Remotes;
use super::remote::Watch;
use super::request::Request;
use crate::context::Context;
use crate::dockerfile::Dockerfile;
use crate::plan;
use crate::plan::Dated;
use crate::plan::Epoch;
use crate::plan::SOURCE_DATE_EPOCH;

/// Puts a time in place of a name, or nothing if what it names has no time: what is
/// planned by `options` then sees the number in ARGs too.
///
/// # Errors
/// Those of planning and of fetching what is named.
pub(super) fn resolve(
    options: &mut plan::Options,
    request: &Request,
    dockerfile: &Dockerfile,
    context: &Context,
    remotes: &Remotes,
    watch: Watch<'_>,
) -> Result<(), Error> {
    let Some(Epoch::Of(dated)) = plan::plan(dockerfile, options)?.source_date_epoch else {
        return Ok(());
    };
    let time = match dated {
        Dated::Context => context.time(),
        Dated::Image => None,
        Dated::Files(name) => {
            let named = request.named_files.iter().find(|files| files.name == name);
            remotes.named_context(&named.ok_or(Error::Panic)?.place, watch)?.time()
        }
        Dated::Source(source) => remotes.time_of(&source, watch)?,
    };
    let text = time.map(|time| time.to_string()).unwrap_or_default();
    options.build_args.push((SOURCE_DATE_EPOCH.to_owned(), Some(text)));
    Ok(())
}
