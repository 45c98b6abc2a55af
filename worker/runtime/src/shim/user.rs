//! The user and groups of a container's process: looks names up in the image's `/etc/passwd` and
//! `/etc/group`, by containerd's rules.

use std::fs;
use std::io;

use super::plan::{ResolvedUser, UserRequest};

/// A line of `/etc/passwd`.
#[derive(Clone, Debug)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// A line of `/etc/group`.
#[derive(Clone, Debug)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Maximum size of either file in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Content of the image's `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

impl Accounts {
    /// Reads both files below the current root directory; a missing file counts as empty.
    pub fn read() -> io::Result<Self> {
        // Reads regular files only: the image may have a pipe there, which blocks, or a device that never
        // ends.
        let text = |path: &str| match fs::metadata(path) {
            Ok(found) if !found.is_file() || found.len() > FILE_BYTES_MAX => {
                let message = format!("{path} of the image is not a small regular file");
                Err(io::Error::new(io::ErrorKind::InvalidData, message))
            }
            Ok(_) => fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(String::new())
            }
            Err(e) => Err(e),
        };
        Ok(Self::parse(&text("/etc/passwd")?, &text("/etc/group")?))
    }

    fn parse(passwd: &str, group: &str) -> Self {
        let users = passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let mut numbers = fields.skip(1);
            Some(Account { name, uid: numbers.next()?.parse().ok()?, gid: numbers.next()?.parse().ok()? })
        });
        let groups = group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let mut rest = fields.skip(1);
            let gid = rest.next()?.parse().ok()?;
            let members =
                rest.next().unwrap_or_default().split(',').filter(|m| !m.is_empty()).map(str::to_owned);
            Some(Group { name, gid, members: members.collect() })
        });
        Self { users: users.collect(), groups: groups.collect() }
    }

    fn user(&self, text: &str) -> Result<Account, String> {
        if let Some(account) = self.users.iter().find(|u| u.name == text) {
            return Ok(account.clone());
        }
        let uid: u32 = text
            .parse()
            .map_err(|_| format!("unable to find user {text}: no matching entries in passwd file"))?;
        let known = self.users.iter().find(|u| u.uid == uid).cloned();
        Ok(known.unwrap_or(Account { name: String::new(), uid, gid: 0 }))
    }

    fn group(&self, text: &str) -> Result<u32, String> {
        if let Some(group) = self.groups.iter().find(|g| g.name == text) {
            return Ok(group.gid);
        }
        text.parse().map_err(|_| format!("unable to find group {text}: no matching entries in group file"))
    }

    /// Looks up the requested user and groups. Fails with a message for the container's status.
    pub fn resolve(&self, request: &UserRequest) -> Result<ResolvedUser, String> {
        let number = |n: i64, what: &str| u32::try_from(n).map_err(|_| format!("invalid {what} {n}"));
        let (mut account, group) = if let Some(uid) = request.run_as_user {
            (self.user(&number(uid, "user id")?.to_string())?, None)
        } else if !request.run_as_username.is_empty() {
            (self.user(&request.run_as_username)?, None)
        } else {
            let text = if request.image_user.is_empty() { "0" } else { &request.image_user };
            let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
            (self.user(user)?, group)
        };
        if let Some(gid) = request.run_as_group {
            account.gid = number(gid, "group id")?;
        } else if let Some(group) = group {
            account.gid = self.group(group)?;
        }
        let mut groups = vec![account.gid];
        if !request.strict_groups && !account.name.is_empty() {
            groups.extend(self.groups.iter().filter(|g| g.members.contains(&account.name)).map(|g| g.gid));
        }
        for gid in &request.supplemental_groups {
            groups.push(number(*gid, "supplemental group")?);
        }
        let mut unique: Vec<u32> = Vec::with_capacity(groups.len());
        for gid in groups {
            if !unique.contains(&gid) {
                unique.push(gid);
            }
        }
        Ok(ResolvedUser { uid: account.uid, gid: account.gid, groups: unique })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            "root:x:0:0:root:/root:/bin/sh\nnginx:x:101:102::/:\nbroken\n",
            "root:x:0:\nnginx:x:102:\nwheel:x:10:root,nginx\n",
        )
    }

    fn resolved(request: UserRequest) -> Result<ResolvedUser, String> {
        accounts().resolve(&request)
    }

    #[test]
    fn without_a_wish_the_process_is_root() {
        let user = resolved(UserRequest::default()).expect("root");
        assert_eq!(user, ResolvedUser { uid: 0, gid: 0, groups: vec![0, 10] });
    }

    #[test]
    fn a_name_brings_its_groups_unless_they_are_strict() {
        let request =
            UserRequest { image_user: "nginx".into(), supplemental_groups: vec![7], ..Default::default() };
        let user = resolved(request.clone()).expect("nginx");
        assert_eq!(user, ResolvedUser { uid: 101, gid: 102, groups: vec![102, 10, 7] });
        let user = resolved(UserRequest { strict_groups: true, ..request }).expect("nginx");
        assert_eq!(user.groups, [102, 7]);
    }

    #[test]
    fn a_number_need_not_be_known() {
        let request = UserRequest { run_as_user: Some(1000), run_as_group: Some(3000), ..Default::default() };
        let user = resolved(request).expect("numbers");
        assert_eq!(user, ResolvedUser { uid: 1000, gid: 3000, groups: vec![3000] });
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let request = UserRequest { image_user: "nobody-here".into(), ..Default::default() };
        assert_eq!(
            resolved(request).expect_err("no such user"),
            "unable to find user nobody-here: no matching entries in passwd file"
        );
    }
}
