//! Fetches what lies on other machines and is no image: files over HTTP ([`Http`]) and
//! git repositories ([`Git`]).
//!
//! Two rules hold everywhere: a credential goes to the host it was given for and to no
//! other, whatever redirects or submodules say; and nothing fetched is held in memory.
//! Messages name hosts and addresses with passwords hidden.

mod error;
mod git;
mod http;
mod single;

pub use error::Error;
pub use git::Checkout;
pub use git::Git;
pub use git::GitAccess;
pub use git::Resolved;
pub use http::Answer;
pub use http::Body;
pub use http::Http;
pub use http::Known;
pub use single::SingleFile;
