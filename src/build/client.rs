//! A registry client made on first use: reading certificates and starting its
//! threads costs milliseconds that a build from `scratch` needn't spend.

use std::sync::OnceLock;

use crate::registry::Client;
use crate::registry::Environment;
use crate::registry::Error;
use crate::registry::Keychain;
use crate::registry::Options;

/// See the module.
pub struct LazyClient {
    options: Options,
    credentials: Environment,
    client: OnceLock<Client>,
}

impl LazyClient {
    /// Keeps what the client is made of.
    pub fn new(options: Options, credentials: Environment) -> Self {
        Self { options, credentials, client: OnceLock::new() }
    }

    /// The client.
    ///
    /// # Errors
    /// A certificate or a file of credentials that can't be read.
    pub fn get(&self) -> Result<&Client, Error> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let keychain = Keychain::read(&self.credentials)?;
        let client = Client::new(self.options.clone(), keychain)?;
        Ok(self.client.get_or_init(|| client))
    }
}
