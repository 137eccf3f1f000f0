//! The flags of the listener for operators, which every service has.

use std::net::SocketAddr;

use clap::Args;
use flotilla_runtime::admin::{AdminClient, AdminSettings};

use super::service::parse_address;

/// The flags of the listener for operators.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// The address for operators: /metrics and /admin; the log at the start has the port [default: a
    /// free port on loopback]
    #[arg(long, value_name = "ADDR", help_heading = "Operators", value_parser = parse_address)]
    admin_listen: Option<SocketAddr>,
    /// Certificates that may read /metrics and /admin: peer:ID or origin:REGION; needed beyond
    /// loopback, unless --admin-open [default: on loopback all processes of this machine]
    #[arg(
        long,
        value_name = "NAME[,NAME]",
        help_heading = "Operators",
        value_delimiter = ','
    )]
    admin_clients: Vec<AdminClient>,
    /// Let all clients read /metrics and /admin at an address beyond loopback
    #[arg(long, help_heading = "Operators")]
    admin_open: bool,
}

impl From<AdminArgs> for AdminSettings {
    fn from(args: AdminArgs) -> Self {
        let default = Self::default();
        Self {
            listen: args.admin_listen.unwrap_or(default.listen),
            open: args.admin_open,
            clients: args.admin_clients,
        }
    }
}
