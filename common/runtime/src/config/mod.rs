//! Configuration in layers: flag, then environment, then `--config FILE`, then default.
//!
//! Every key is defined once, as a clap flag; the environment variable and the file key derive from
//! it. A command opts in by flattening [`ConfigFile`] into its arguments. Its flag `--tls-cert` is
//! then also
//!
//! - the environment variable `FLOTILLA_TLS_CERT`, unless the flag names another one, and
//! - the line `tls-cert = "..."` (or `tls_cert`) of the TOML file; a flag that may be repeated
//!   takes an array.
//!
//! The file's value becomes the flag's default, so clap decides the precedence: flag, environment,
//! file. Values are checked beforehand, so that an error names the file, the key and the fix.
//!
//! This module must not know any key.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, Parser};
use toml::{Table, Value};

use crate::suggest;

/// The argument that names the file; to be flattened into a command's arguments.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFile {
    /// Read the keys that are neither flags nor in the environment from this TOML file
    #[arg(
        long = "config",
        id = "config",
        value_name = "FILE",
        env = "FLOTILLA_CONFIG"
    )]
    pub config: Option<PathBuf>,
}

const CONFIG: &str = "config";
const ENVIRONMENT_PREFIX: &str = "FLOTILLA_";

/// Why arguments, environment and file do not form a valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Flags or environment; also `--help` and `--version`.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The file cannot be read.
    #[error("read configuration '{}': {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not valid TOML.
    #[error("configuration '{}' is not valid TOML: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// The file has a key that the command does not have.
    #[error("configuration '{}': unknown key '{key}'; {hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The most similar key, or all keys.
        hint: String,
    },
    /// The file has a bad value.
    #[error("configuration '{}': key '{key}': {fault}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The fault, and how to fix it.
        fault: String,
    },
}

/// Parses the configuration of this process. On an error it prints the reason and exits with clap's
/// status 2 (0 for `--help` and `--version`).
pub fn parse<P: Parser>() -> P {
    match try_parse_from(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(ConfigError::Arguments(error)) => error.exit(),
        // The flags are correct, so clap's usage text would mislead.
        Err(error) => clap::Error::raw(
            ErrorKind::InvalidValue,
            format!("{}\n", error.to_string().trim_end()),
        )
        .exit(),
    }
}

/// Parses the configuration from `arguments` (the first is the program's name), environment and
/// file.
///
/// # Errors
/// The fault, its place, and how to fix it.
pub fn try_parse_from<P, I>(arguments: I) -> Result<P, ConfigError>
where
    P: Parser,
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let matches = matches(
        P::command(),
        arguments.into_iter().map(Into::into).collect(),
    )?;
    Ok(P::from_arg_matches(&matches)?)
}

fn matches(command: Command, arguments: Vec<OsString>) -> Result<ArgMatches, ConfigError> {
    let command = with_environment(command);
    // The first pass only looks for the file and ignores errors: the file may supply missing keys.
    let first_pass = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(&arguments);
    let file = first_pass.ok().and_then(|matches| named_file(&matches));
    let command = match file {
        None => command,
        Some((path, subcommands)) => {
            let values = read(&path)?;
            update_subcommand(command, &subcommands, |command| {
                with_file(command, &path, &values)
            })?
        }
    };
    Ok(command.try_get_matches_from(arguments)?)
}

fn has_config_file(command: &Command) -> bool {
    command.get_arguments().any(|arg| arg.get_id() == CONFIG)
}

/// The key of an argument in the file; `None` for arguments that are not keys.
fn key_of(arg: &Arg) -> Option<&str> {
    let is_key = arg.get_id() != CONFIG
        && !matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
    arg.get_long().filter(|_| is_key)
}

/// Adds an environment variable to every key of every command with a configuration file.
fn with_environment(command: Command) -> Command {
    let command = if has_config_file(&command) {
        command.mut_args(|arg| match key_of(&arg) {
            Some(key) if arg.get_env().is_none() => {
                let variable = format!(
                    "{ENVIRONMENT_PREFIX}{}",
                    key.replace('-', "_").to_ascii_uppercase()
                );
                arg.env(variable)
            }
            _ => arg,
        })
    } else {
        command
    };
    command.mut_subcommands(with_environment)
}

/// Finds the innermost `--config`, and the path of subcommands to it.
fn named_file(matches: &ArgMatches) -> Option<(PathBuf, Vec<String>)> {
    if let Some((name, matches)) = matches.subcommand()
        && let Some((path, mut subcommands)) = named_file(matches)
    {
        subcommands.insert(0, name.to_owned());
        return Some((path, subcommands));
    }
    let path = matches.try_get_one::<PathBuf>(CONFIG).ok()??;
    Some((path.clone(), Vec::new()))
}

/// Applies `change` to the command at the end of a path of subcommands.
fn update_subcommand<F>(
    command: Command,
    path: &[String],
    change: F,
) -> Result<Command, ConfigError>
where
    F: FnOnce(Command) -> Result<Command, ConfigError>,
{
    let Some((next, rest)) = path.split_first() else {
        return change(command);
    };
    let mut result = Ok(());
    let command = command.mut_subcommand(next, |subcommand| {
        let unchanged = subcommand.clone();
        update_subcommand(subcommand, rest, change).unwrap_or_else(|error| {
            result = Err(error);
            unchanged
        })
    });
    result.map(|()| command)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    text.parse().map_err(|source| ConfigError::Syntax {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Sets the values of the file as the defaults of their flags.
fn with_file(mut command: Command, path: &Path, values: &Table) -> Result<Command, ConfigError> {
    for (key, value) in values {
        let arg = find(&command, key).ok_or_else(|| unknown_key(&command, path, key))?;
        let fault = |fault: String| ConfigError::Value {
            path: path.to_owned(),
            key: key.clone(),
            fault,
        };
        let texts = texts(arg, value).map_err(fault)?;
        check(arg, &texts).map_err(fault)?;
        let id = arg.get_id().clone();
        command = command.mut_arg(id, |arg| arg.required(false).default_values(texts));
    }
    Ok(command)
}

fn find<'c>(command: &'c Command, key: &str) -> Option<&'c Arg> {
    let flag = key.replace('_', "-");
    command
        .get_arguments()
        .find(|arg| key_of(arg) == Some(flag.as_str()))
}

/// Converts a TOML value to the text of the flag's value.
fn texts(arg: &Arg, value: &Value) -> Result<Vec<String>, String> {
    let takes_value = arg.get_action().takes_values();
    let repeats =
        matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
    match value {
        Value::Boolean(value) => Ok(vec![value.to_string()]),
        _ if !takes_value => Err("is a switch: use true or false".to_owned()),
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Integer(number) => Ok(vec![number.to_string()]),
        Value::Float(number) => Ok(vec![number.to_string()]),
        Value::Array(values) if repeats => {
            let each = values.iter().map(|value| texts(arg, value));
            each.collect::<Result<Vec<_>, _>>()
                .map(|texts| texts.concat())
        }
        Value::Array(_) => Err("takes one value, not an array".to_owned()),
        Value::Table(_) => Err("is a table: use 'key = value' lines without [sections]".to_owned()),
        Value::Datetime(_) => Err("is a date: put it in quotes".to_owned()),
    }
}

/// Checks the values with clap, as if they had been given to this one flag.
fn check(arg: &Arg, texts: &[String]) -> Result<(), String> {
    let Some(flag) = arg.get_long().filter(|_| arg.get_action().takes_values()) else {
        return Ok(());
    };
    let alone = Arg::new("value")
        .long(flag.to_owned())
        .action(ArgAction::Append)
        .value_parser(arg.get_value_parser().clone());
    let typed = texts.iter().map(|text| format!("--{flag}={text}"));
    let parsed = Command::new("configuration")
        .no_binary_name(true)
        .disable_help_flag(true)
        .arg(alone)
        .try_get_matches_from(typed);
    match parsed {
        Ok(_) => Ok(()),
        Err(error) => Err(first_line(&error)),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn unknown_key(command: &Command, path: &Path, key: &str) -> ConfigError {
    let keys: Vec<_> = command.get_arguments().filter_map(key_of).collect();
    let hint = suggest::hint(key, "keys", &keys);
    ConfigError::UnknownKey {
        path: path.to_owned(),
        key: key.to_owned(),
        hint,
    }
}

#[cfg(test)]
mod tests;
