//! Diagnostics of our own modules: warnings always, the rest with
//! `--verbosity=debug` and `trace`.

use std::fmt;

use tracing::Event;
use tracing::Level;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::FormatEvent;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::registry::LookupSpan;

use super::flags::LogFormat;
use super::flags::Verbosity;
use super::screen::Screen;

/// Starts writing diagnostics to `screen`.
pub(super) fn start(verbosity: Verbosity, format: LogFormat, screen: &Screen) {
    let level = match verbosity {
        Verbosity::Panic | Verbosity::Fatal | Verbosity::Error => "error",
        Verbosity::Warn | Verbosity::Info => "warn",
        Verbosity::Debug => "yadokari=debug,warn",
        Verbosity::Trace => "yadokari=trace,info",
    };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(screen.clone())
        .with_env_filter(EnvFilter::new(level));
    // A second call in one process (a test) keeps the first subscriber.
    let _ = match format {
        LogFormat::Json => subscriber.json().try_init(),
        LogFormat::Text | LogFormat::Color => {
            subscriber.with_ansi(false).event_format(Plain).try_init()
        }
    };
}

/// `warning: message key=value`, as the builder's own lines look.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        match *metadata.level() {
            Level::ERROR => writer.write_str("error: ")?,
            Level::WARN => writer.write_str("warning: ")?,
            level => write!(writer, "{}: {}: ", level.as_str().to_lowercase(), metadata.target())?,
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
