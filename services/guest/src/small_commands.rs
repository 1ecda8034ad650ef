//! The commands that scripts inside a guest call: `systemctl`, `dstack-util`, and dhcpcd's hook. One program under several names.

use std::io;

use crate::boot::{
    control::{self, Order},
    layout::Layout,
    network::HOOK_NAME,
    sequence,
};

/// Runs the command that `name` stands for; `None` if it is none of ours.
#[must_use]
pub fn run(name: &str, arguments: &[String]) -> Option<u8> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let result = match name {
        "systemctl" => parse_systemctl(arguments).and_then(|order| send(&order)),
        "poweroff" | "halt" | "shutdown" => send(&Order::PowerOff),
        "reboot" => send(&Order::Reboot),
        "dstack-util" => parse_dstack_util(arguments).and_then(|order| send(&order)),
        HOOK_NAME => sequence::dhcp_event(),
        _ => return None,
    };
    Some(match result {
        Ok(()) => 0,
        Err(error) => {
            use io::Write as _;
            let _ = writeln!(io::stderr().lock(), "{name}: {error}");
            1
        }
    })
}

fn send(order: &Order) -> io::Result<()> {
    control::send(&Layout::default().control_socket(), order)
}

fn parse_systemctl(arguments: &[String]) -> io::Result<Order> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    match words.as_slice() {
        ["poweroff" | "halt"] => Ok(Order::PowerOff),
        ["reboot"] => Ok(Order::Reboot),
        ["restart" | "try-restart", unit] => match unit.trim_end_matches(".service") {
            "docker" | "dockerd" => Ok(Order::Restart { service: "dockerd".to_owned() }),
            "containerd" => Ok(Order::Restart { service: "containerd".to_owned() }),
            "dstack-guest-agent" => Ok(Order::Restart { service: "dstack-guest-agent".to_owned() }),
            other => Err(io::Error::other(format!("there is no unit {other}"))),
        },
        _ => Err(io::Error::other(
            "not implemented; there is no systemd here. Known: restart docker|containerd|dstack-guest-agent, poweroff, reboot",
        )),
    }
}

fn parse_dstack_util(arguments: &[String]) -> io::Result<Order> {
    let mut words = arguments.iter().map(String::as_str);
    if words.next() != Some("notify-host") {
        return Err(io::Error::other("not implemented. Known: notify-host --event NAME --payload TEXT"));
    }
    let (mut event, mut payload) = (None, String::new());
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| io::Error::other(format!("{word} needs a value")))?;
        match word {
            "-e" | "--event" => event = Some(value.to_owned()),
            "-d" | "-p" | "--data" | "--payload" => value.clone_into(&mut payload),
            other => return Err(io::Error::other(format!("unknown option {other}"))),
        }
    }
    let event = event.ok_or_else(|| io::Error::other("--event is missing"))?;
    Ok(Order::Notify { event, payload })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn systemctl_knows_what_scripts_use() {
        assert_eq!(parse_systemctl(&words("restart docker")).unwrap(), Order::Restart { service: "dockerd".to_owned() });
        assert_eq!(parse_systemctl(&words("--no-block restart docker.service")).unwrap(), Order::Restart { service: "dockerd".to_owned() });
        assert_eq!(parse_systemctl(&words("poweroff")).unwrap(), Order::PowerOff);
        assert_eq!(parse_systemctl(&words("reboot")).unwrap(), Order::Reboot);
    }

    #[test]
    fn what_is_not_there_says_so() {
        assert!(parse_systemctl(&words("start sshd")).unwrap_err().to_string().contains("not implemented"));
        assert!(parse_systemctl(&words("restart sshd")).is_err());
        assert!(parse_dstack_util(&words("quote")).unwrap_err().to_string().contains("not implemented"));
    }

    #[test]
    fn notify_host_takes_short_and_long_options() {
        let expected = Order::Notify { event: "boot.progress".to_owned(), payload: "half".to_owned() };

        assert_eq!(parse_dstack_util(&words("notify-host -e boot.progress -d half")).unwrap(), expected);
        assert_eq!(parse_dstack_util(&words("notify-host --event boot.progress --payload half")).unwrap(), expected);
        assert!(parse_dstack_util(&words("notify-host -d half")).is_err());
        assert!(parse_dstack_util(&words("notify-host -e")).is_err());
    }

    #[test]
    fn other_names_are_not_ours() {
        assert_eq!(run("/usr/lib/dstack/dstack-init", &[]), None);
    }
}
