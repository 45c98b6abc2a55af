//! Printers of kinds with few columns, mostly configuration: Namespace, ConfigMap, Secret, ServiceAccount,
//! Lease.

use super::{AGE, Column, Doc, NAME, Printer, age, fixed};
use crate::registry::kinds::json_fields::{self, JsonFields};

pub(super) static NAMESPACE: Printer = Printer {
    columns: &[NAME, Column::text("Status", Doc::Text("The status of the namespace")), AGE],
    cells: |obj| vec![fixed(json_fields::name(obj)), fixed(obj.sub("status").text("phase")), age(obj)],
};

pub(super) static CONFIG_MAP: Printer = Printer {
    columns: &[NAME, Column::text("Data", Doc::Field("core/v1.ConfigMap", "data")), AGE],
    cells: |obj| {
        let entries = obj.entries("data").len() + obj.entries("binaryData").len();
        vec![fixed(json_fields::name(obj)), fixed(entries), age(obj)]
    },
};

pub(super) static SECRET: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Type", Doc::Field("core/v1.Secret", "type")),
        Column::text("Data", Doc::Field("core/v1.Secret", "data")),
        AGE,
    ],
    cells: |obj| {
        let entries = obj.entries("data").len();
        vec![fixed(json_fields::name(obj)), fixed(obj.text("type")), fixed(entries), age(obj)]
    },
};

pub(super) static SERVICE_ACCOUNT: Printer =
    Printer { columns: &[NAME, AGE], cells: |obj| vec![fixed(json_fields::name(obj)), age(obj)] };

pub(super) static LEASE: Printer = Printer {
    columns: &[NAME, Column::text("Holder", Doc::Field("coordination/v1.LeaseSpec", "holderIdentity")), AGE],
    cells: |obj| vec![fixed(json_fields::name(obj)), fixed(obj.sub("spec").text("holderIdentity")), age(obj)],
};
