//! Each cause is found in surroundings filled by hand, and each text names cause and remedy.

use std::error::Error as _;

use super::*;

/// An unprivileged process on a recent kernel where nothing forbids anything.
fn open() -> Surroundings {
    Surroundings {
        release: Some("6.14.8-amd64".to_owned()),
        sysctl: Some(0),
        sysctl_group: Some(-1),
        seccomp: Some(0),
        groups: Some(vec![1000, 27]),
        capabilities: Some(0),
        in_user_namespace: Some(false),
        memlock_limit: Some(8 << 20),
    }
}

fn on(release: &str) -> Surroundings {
    Surroundings { release: Some(release.to_owned()), sysctl: None, sysctl_group: None, ..open() }
}

fn cause(stage: Stage, errno: i32, around: &Surroundings) -> Cause {
    Refusal::judge(stage, errno, 200 << 10, around).cause
}

fn is_open_question(cause: &Cause) -> bool {
    matches!(cause, Cause::Unknown { suspects: Some(_) })
}

#[test]
fn eperm_under_a_sysctl_of_two_is_the_sysctl_also_for_root_and_under_a_filter() {
    let around =
        Surroundings { sysctl: Some(2), seccomp: Some(2), capabilities: Some(!0), ..open() };
    assert_eq!(cause(Stage::Setup, libc::EPERM, &around), Cause::Sysctl(2));
    // A ring that could be made has passed the sysctl.
    assert_eq!(cause(Stage::Enter, libc::EPERM, &around), Cause::Seccomp);
    assert_eq!(cause(Stage::Register, libc::EPERM, &around), Cause::Seccomp);
}

#[test]
fn eperm_under_a_sysctl_of_one_depends_on_group_and_privilege() {
    let outside = Surroundings { sysctl: Some(1), seccomp: Some(2), ..open() };
    assert_eq!(cause(Stage::Setup, libc::EPERM, &outside), Cause::Sysctl(1));
    let other_group = Surroundings { sysctl_group: Some(99), ..outside.clone() };
    assert_eq!(cause(Stage::Setup, libc::EPERM, &other_group), Cause::Sysctl(1));

    let member = Surroundings { sysctl_group: Some(27), ..outside.clone() };
    assert_eq!(cause(Stage::Setup, libc::EPERM, &member), Cause::Seccomp);
    let root = Surroundings { capabilities: Some(1 << CAP_SYS_ADMIN), ..outside.clone() };
    assert_eq!(cause(Stage::Setup, libc::EPERM, &root), Cause::Seccomp);
    // The root of a user namespace is nobody to the sysctl.
    let contained = Surroundings { in_user_namespace: Some(true), ..root };
    assert_eq!(cause(Stage::Setup, libc::EPERM, &contained), Cause::Sysctl(1));

    let renumbered =
        Surroundings { in_user_namespace: Some(true), sysctl_group: Some(27), ..outside };
    assert!(is_open_question(&cause(Stage::Setup, libc::EPERM, &renumbered)));
}

#[test]
fn eperm_without_sysctl_is_a_filter_if_there_is_one_and_else_a_security_module() {
    let filtered = Surroundings { seccomp: Some(2), ..open() };
    assert_eq!(cause(Stage::Setup, libc::EPERM, &filtered), Cause::Seccomp);
    let old = Surroundings { seccomp: Some(2), ..on("5.15.0-91-generic") };
    assert_eq!(cause(Stage::Setup, libc::EPERM, &old), Cause::Seccomp);
    assert_eq!(cause(Stage::Setup, libc::EPERM, &open()), Cause::SecurityModule);
    assert_eq!(cause(Stage::Setup, libc::EPERM, &on("6.1.0")), Cause::SecurityModule);
}

#[test]
fn eacces_is_a_security_module_unless_a_filter_may_have_said_it() {
    assert_eq!(cause(Stage::Setup, libc::EACCES, &open()), Cause::SecurityModule);
    let filtered = Surroundings { seccomp: Some(2), ..open() };
    assert!(is_open_question(&cause(Stage::Setup, libc::EACCES, &filtered)));
}

#[test]
fn enosys_is_an_old_kernel_a_filter_or_a_kernel_built_without() {
    let old = cause(Stage::Setup, libc::ENOSYS, &on("4.19.0-26-amd64"));
    let missing = "io_uring (since Linux 5.1)";
    assert_eq!(old, Cause::KernelTooOld { release: "4.19.0-26-amd64".to_owned(), missing });

    let filtered = Surroundings { seccomp: Some(2), ..on("5.1.0") };
    assert_eq!(cause(Stage::Setup, libc::ENOSYS, &filtered), Cause::Seccomp);
    let filtered = Surroundings { seccomp: Some(2), ..open() };
    assert_eq!(cause(Stage::Setup, libc::ENOSYS, &filtered), Cause::Seccomp);

    assert_eq!(cause(Stage::Setup, libc::ENOSYS, &on("5.15.0")), Cause::NotBuiltIn);
    // Since 6.6 the missing sysctl proves it, whatever filter there is.
    let without = Surroundings { seccomp: Some(2), ..on("6.6.0") };
    assert_eq!(cause(Stage::Setup, libc::ENOSYS, &without), Cause::NotBuiltIn);
    // Built in, and no filter: something else answers system calls here.
    assert!(is_open_question(&cause(Stage::Setup, libc::ENOSYS, &open())));
}

#[test]
fn enomem_is_the_memlock_limit_only_for_those_it_binds() {
    let bound = Cause::MemlockLimit { limit: 8 << 20, needed: 200 << 10 };
    assert_eq!(cause(Stage::Setup, libc::ENOMEM, &open()), bound);
    let privileged = Surroundings { capabilities: Some(1 << CAP_IPC_LOCK), ..open() };
    assert_eq!(cause(Stage::Setup, libc::ENOMEM, &privileged), Cause::OutOfMemory);
    let contained = Surroundings { in_user_namespace: Some(true), ..privileged.clone() };
    assert_eq!(cause(Stage::Setup, libc::ENOMEM, &contained), bound);
    let unlimited = Surroundings { memlock_limit: Some(u64::MAX), ..open() };
    assert_eq!(cause(Stage::Register, libc::ENOMEM, &unlimited), Cause::OutOfMemory);
    let unread = Surroundings { in_user_namespace: None, ..privileged };
    assert!(is_open_question(&cause(Stage::Setup, libc::ENOMEM, &unread)));
    // Rings do not count there.
    for release in ["5.12.0", "6.13.12-amd64"] {
        let found = cause(Stage::Setup, libc::ENOMEM, &on(release));
        assert_eq!(found, Cause::OutOfMemory, "{release}");
    }
    assert_eq!(cause(Stage::Setup, libc::ENOMEM, &on("5.11.22")), bound);
}

#[test]
fn einval_blames_the_kernel_only_if_it_is_old_and_names_what_it_lacks() {
    let stages = [
        (Stage::Setup, "DEFER_TASKRUN"),
        (Stage::Features, "EXT_ARG"),
        (Stage::Register, "provided buffers"),
        (Stage::Probe("multishot receive"), "multishot receive"),
    ];
    for (stage, name) in stages {
        for errno in [libc::EINVAL, libc::EOPNOTSUPP, 0] {
            let old = Surroundings { seccomp: Some(2), ..on("6.0.19") };
            let found = cause(stage, errno, &old);
            let Cause::KernelTooOld { release, missing } = &found else { panic!("{found:?}") };
            assert_eq!(release, "6.0.19");
            assert!(missing.contains(name), "{missing}");
        }
    }
    for release in ["6.1.0", "6.18.44", "10.0.1"] {
        let filtered = Surroundings { seccomp: Some(2), ..on(release) };
        assert_eq!(cause(Stage::Setup, libc::EINVAL, &filtered), Cause::Seccomp);
        // A filter sees no operations.
        let probe = Stage::Probe("multishot receive");
        assert_eq!(cause(probe, libc::EINVAL, &filtered), Cause::Unknown { suspects: None });
        let unexplained = cause(Stage::Setup, libc::EINVAL, &on(release));
        assert_eq!(unexplained, Cause::Unknown { suspects: None });
    }
}

#[test]
fn descriptors_and_strange_errnos_are_not_explained_away() {
    assert_eq!(cause(Stage::Setup, libc::EMFILE, &open()), Cause::OutOfDescriptors);
    assert_eq!(cause(Stage::Setup, libc::ENFILE, &open()), Cause::OutOfDescriptors);
    let strange = Refusal::judge(Stage::Setup, libc::EIO, 0, &open());
    assert_eq!(strange.cause, Cause::Unknown { suspects: None });
    assert!(strange.to_string().starts_with("io_uring_setup was refused with errno 5: "));
}

#[test]
fn nothing_is_claimed_where_nothing_can_be_read() {
    let blind = Surroundings::default();
    for errno in [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::ENOMEM, libc::EINVAL] {
        let refusal = Refusal::judge(Stage::Setup, errno, 0, &blind);
        assert!(is_open_question(&refusal.cause), "{refusal:?}");
        assert!(refusal.to_string().contains("cannot be told from here"), "{refusal}");
    }
}

#[test]
fn the_text_names_cause_and_remedy() {
    let filtered = Surroundings { seccomp: Some(2), ..open() };
    let seccomp = Refusal::judge(Stage::Setup, libc::EPERM, 0, &filtered);
    assert_eq!(
        seccomp.to_string(),
        "io_uring_setup was refused with EPERM: a seccomp filter forbids it, as containers have \
         by default; run with a profile that allows io_uring_setup, io_uring_enter and \
         io_uring_register (docker: --security-opt seccomp=PROFILE), or choose epoll with \
         ANNULUS_DRIVER=epoll"
    );
    let small = Surroundings { memlock_limit: Some(64 << 10), ..open() };
    let memlock = Refusal::judge(Stage::Register, libc::ENOMEM, (200 << 10) + 1, &small);
    assert_eq!(
        memlock.to_string(),
        "io_uring_register was refused with ENOMEM: the ring needs 201 KiB of locked memory, \
         and all processes of this user together may have 64 KiB (RLIMIT_MEMLOCK); raise the limit \
         (ulimit -l, LimitMEMLOCK= in systemd, docker --ulimit memlock=), or choose epoll with \
         ANNULUS_DRIVER=epoll"
    );

    let text =
        |errno, around: Surroundings| Refusal::judge(Stage::Setup, errno, 0, &around).to_string();
    let sysctl = text(libc::EPERM, Surroundings { sysctl: Some(2), ..open() });
    assert!(sysctl.contains("sysctl -w kernel.io_uring_disabled=0"), "{sysctl}");
    let grouped = text(libc::EPERM, Surroundings { sysctl: Some(1), ..open() });
    assert!(grouped.contains("kernel.io_uring_group"), "{grouped}");
    let gvisor = text(libc::ENOSYS, on("4.4.0"));
    assert!(gvisor.contains("gVisor"), "{gvisor}");
    let process_full = text(libc::EMFILE, open());
    assert!(process_full.ends_with("raise RLIMIT_NOFILE (ulimit -n)"), "{process_full}");
    let system_full = text(libc::ENFILE, open());
    assert!(system_full.ends_with("raise the sysctl fs.file-max"), "{system_full}");
}

#[test]
fn the_summary_fits_a_notice() {
    let summary = |stage, errno, around: Surroundings| {
        Refusal::judge(stage, errno, 200 << 10, &around).summary()
    };
    let filtered = Surroundings { seccomp: Some(2), ..open() };
    assert_eq!(
        summary(Stage::Setup, libc::EPERM, filtered),
        "io_uring_setup was refused with EPERM (seccomp filter)"
    );
    assert_eq!(
        summary(Stage::Setup, libc::ENOMEM, open()),
        "io_uring_setup was refused with ENOMEM (locked memory limited to 8 MiB, 200 KiB needed)"
    );
    assert_eq!(
        summary(Stage::Probe("multishot receive"), libc::EINVAL, on("5.15.0")),
        "multishot receive on io_uring was refused with EINVAL (Linux 5.15.0 lacks multishot \
         receive)"
    );
    assert_eq!(
        summary(Stage::Features, libc::EINVAL, on("5.4.0")),
        "io_uring_setup offers too little (Linux 5.4.0 lacks NODROP, EXT_ARG, CQE_SKIP or \
         FAST_POLL (since Linux 5.17))"
    );
    assert_eq!(
        summary(Stage::Probe("multishot accept"), 0, open()),
        "io_uring lacks multishot accept (cause unclear)"
    );
}

#[test]
fn an_io_error_keeps_the_kind_the_text_and_the_errno() {
    let kinds = [
        (libc::EPERM, io::ErrorKind::PermissionDenied),
        (libc::EACCES, io::ErrorKind::PermissionDenied),
        (libc::ENOSYS, io::ErrorKind::Unsupported),
        (libc::EINVAL, io::ErrorKind::Unsupported),
        (libc::EOPNOTSUPP, io::ErrorKind::Unsupported),
        (libc::ENOMEM, io::ErrorKind::OutOfMemory),
    ];
    for (errno, kind) in kinds {
        let refusal = Refusal::judge(Stage::Setup, errno, 0, &open());
        let error = io::Error::from(refusal.clone());
        assert_eq!(error.kind(), kind);
        assert_eq!(error.to_string(), refusal.to_string());
        let inside = error.get_ref().unwrap().downcast_ref::<Refusal>().unwrap();
        assert_eq!(inside.raw_os_error(), Some(errno));
        assert!(inside.source().is_none());
    }
    assert_eq!(Refusal::judge(Stage::Features, 0, 0, &open()).raw_os_error(), None);
}

#[test]
fn status_and_uid_map_are_read_as_the_kernel_writes_them() {
    let status = "Name:\tserver\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1001\t1002\t1003\n\
                  Groups:\t27 44 1000 \nCapEff:\t0000000000204000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
                  Seccomp_filters:\t3\n";
    let mut around = Surroundings { in_user_namespace: Some(false), ..Surroundings::default() };
    around.read_status(status);
    assert_eq!(around.seccomp, Some(2));
    assert_eq!(around.groups, Some(vec![1003, 27, 44, 1000]));
    assert_eq!(around.has_capability(CAP_IPC_LOCK), Some(true));
    assert_eq!(around.has_capability(CAP_SYS_ADMIN), Some(true));
    assert_eq!(around.has_capability(0), Some(false));

    around.read_status("no such fields\n");
    assert_eq!((around.seccomp, around.capabilities, around.groups), (None, None, None));

    assert!(maps_every_user("         0          0 4294967295\n"));
    assert!(!maps_every_user("         0       1000          1\n"));
    assert!(!maps_every_user(""));
}

#[test]
fn this_machine_can_be_read() {
    let around = Surroundings::read();
    assert!(around.version().is_some(), "{around:?}");
    assert!(around.seccomp.is_some(), "{around:?}");
    assert!(around.capabilities.is_some(), "{around:?}");
    assert!(around.groups.is_some_and(|groups| !groups.is_empty()));
    assert!(around.in_user_namespace.is_some());
    assert!(around.memlock_limit.is_some());
}

#[test]
fn sizes_are_never_said_smaller_than_they_are() {
    let said = |bytes| Bytes(bytes).to_string();
    assert_eq!(said(0), "0 bytes");
    assert_eq!(said(1023), "1023 bytes");
    assert_eq!(said(65_537), "65 KiB");
    assert_eq!(said(8 << 20), "8 MiB");
    assert_eq!(said((8 << 20) + 1), "8193 KiB");
    assert_eq!(said(u64::MAX), "unlimited");
}
