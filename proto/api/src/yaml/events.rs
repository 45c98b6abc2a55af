//! The events of libyaml, from which go-yaml v2 was made, so both accept the same texts and give the same
//! errors. Used by `tree.rs`. This is the only file of this folder with unsafe code: the parser and each
//! event are freed when they are dropped, and an event's content is copied out of it.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;

use unsafe_libyaml_norway as unsafe_libyaml;

/// An event of the parser; the ends of the stream, documents, sequences and mappings are events too.
#[derive(Debug)]
pub(super) enum ParserEvent {
    StreamStart,
    StreamEnd,
    /// `minor` is the version from a `%YAML 1.minor` before the document; `None` without one.
    DocumentStart {
        minor: Option<i32>,
    },
    DocumentEnd,
    Alias {
        anchor: String,
    },
    /// `plain` is false for quoted, literal and folded scalars and for scalars with a tag.
    Scalar {
        anchor: Option<String>,
        tag: Option<String>,
        text: String,
        plain: bool,
    },
    SequenceStart {
        anchor: Option<String>,
    },
    SequenceEnd,
    MappingStart {
        anchor: Option<String>,
    },
    MappingEnd,
}

/// Reads the events of a text. The C parser is boxed, because libyaml keeps pointers into it.
pub(super) struct Parser<'a> {
    parser: Box<MaybeUninit<unsafe_libyaml::yaml_parser_t>>,
    text: PhantomData<&'a [u8]>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a [u8]) -> Result<Self, String> {
        let mut parser = Box::new(MaybeUninit::<unsafe_libyaml::yaml_parser_t>::uninit());
        // SAFETY: `initialize` writes the whole struct, which is not moved until `drop`. The text is
        // borrowed for as long as the parser lives.
        unsafe {
            if unsafe_libyaml::yaml_parser_initialize(parser.as_mut_ptr()).fail {
                return Err("yaml: out of memory".into());
            }
            unsafe_libyaml::yaml_parser_set_input_string(
                parser.as_mut_ptr(),
                text.as_ptr(),
                text.len() as u64,
            );
        }
        Ok(Parser { parser, text: PhantomData })
    }

    /// Returns the next event and the line, counted from 0, on which it starts.
    pub(super) fn next(&mut self) -> Result<(ParserEvent, u64), String> {
        let mut event = MaybeUninit::<unsafe_libyaml::yaml_event_t>::uninit();
        // SAFETY: `parse` writes the event where it succeeds; it is read by its type alone and deleted once.
        unsafe {
            if unsafe_libyaml::yaml_parser_parse(self.parser.as_mut_ptr(), event.as_mut_ptr()).fail {
                return Err(self.error());
            }
            let line = (*event.as_ptr()).start_mark.line;
            let copied = copy(&*event.as_ptr());
            unsafe_libyaml::yaml_event_delete(event.as_mut_ptr());
            Ok((copied, line))
        }
    }

    /// Returns the error's text as go-yaml's `parser.fail` writes it, which counts lines in three ways.
    fn error(&self) -> String {
        // SAFETY: the parser was initialized; `problem` is null or a string owned by the library.
        let (kind, problem, at, context) = unsafe {
            let parser = &*self.parser.as_ptr();
            let problem = match parser.problem.is_null() {
                true => "unknown problem parsing YAML content".to_owned(),
                false => CStr::from_ptr(parser.problem.cast()).to_string_lossy().into_owned(),
            };
            (parser.error, problem, parser.problem_mark.line, parser.context_mark.line)
        };
        let line = match (at, context) {
            (0, context) => context,
            (at, _) => at + u64::from(kind == unsafe_libyaml::YAML_SCANNER_ERROR),
        };
        if line == 0 { format!("yaml: {problem}") } else { format!("yaml: line {line}: {problem}") }
    }
}

impl Drop for Parser<'_> {
    fn drop(&mut self) {
        // SAFETY: initialized in `new`, deleted only here.
        unsafe { unsafe_libyaml::yaml_parser_delete(self.parser.as_mut_ptr()) }
    }
}

/// Copies an event out of libyaml's memory.
///
/// # Safety
///
/// The event must have been written by `yaml_parser_parse` and not have been deleted.
unsafe fn copy(event: &unsafe_libyaml::yaml_event_t) -> ParserEvent {
    // SAFETY: the field of the union is the one of the event's type; its strings end with a zero byte.
    unsafe {
        match event.type_ {
            unsafe_libyaml::YAML_STREAM_START_EVENT => ParserEvent::StreamStart,
            unsafe_libyaml::YAML_DOCUMENT_START_EVENT => {
                let version = event.data.document_start.version_directive;
                ParserEvent::DocumentStart { minor: (!version.is_null()).then(|| (*version).minor) }
            }
            unsafe_libyaml::YAML_DOCUMENT_END_EVENT => ParserEvent::DocumentEnd,
            unsafe_libyaml::YAML_ALIAS_EVENT => {
                ParserEvent::Alias { anchor: string(event.data.alias.anchor).unwrap_or_default() }
            }
            unsafe_libyaml::YAML_SCALAR_EVENT => {
                let scalar = event.data.scalar;
                let length = usize::try_from(scalar.length).unwrap_or_default();
                let bytes = ptr::slice_from_raw_parts(scalar.value.cast_const(), length);
                ParserEvent::Scalar {
                    anchor: string(scalar.anchor),
                    tag: string(scalar.tag),
                    text: String::from_utf8_lossy(&*bytes).into_owned(),
                    plain: scalar.plain_implicit,
                }
            }
            unsafe_libyaml::YAML_SEQUENCE_START_EVENT => {
                ParserEvent::SequenceStart { anchor: string(event.data.sequence_start.anchor) }
            }
            unsafe_libyaml::YAML_SEQUENCE_END_EVENT => ParserEvent::SequenceEnd,
            unsafe_libyaml::YAML_MAPPING_START_EVENT => {
                ParserEvent::MappingStart { anchor: string(event.data.mapping_start.anchor) }
            }
            unsafe_libyaml::YAML_MAPPING_END_EVENT => ParserEvent::MappingEnd,
            _ => ParserEvent::StreamEnd,
        }
    }
}

/// Copies a string; `None` for a null pointer.
///
/// # Safety
///
/// The pointer must be null or point to a string that ends with a zero byte.
unsafe fn string(text: *const u8) -> Option<String> {
    // SAFETY: as the caller says.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text.cast()).to_string_lossy().into_owned() })
}
