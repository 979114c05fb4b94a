use std::time::Instant;

use super::super::conversation::{Conversation, Message, Values};
use super::*;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

fn compile(source: &str) -> Result<Template, Failed> {
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    Template::compile(source, tokens, "2026-03-04T05:06:07Z".parse().unwrap())
}

fn render(source: &str, messages: &[Message]) -> Result<String, Failed> {
    let values = Values::new(&Conversation::from(messages));
    compile(source)?.render(&values.others, &values.messages, Ask::Answer)
}

#[test]
fn white_space_methods_and_globals_are_those_of_transformers() {
    let source = "{{ bos_token }}\n{%- for m in messages %}\n    {% if m.role == 'user' %}\n\
                  U:{{ m['content'].strip() }}\n    {% endif %}\n{% endfor %}\n\
                  {{ strftime_now('%d %b %Y') }}{% if tools is none %}-{% endif %}";
    let rendered = render(source, &[message("user", "  hi ")]).unwrap();
    assert_eq!(rendered, "<s>U:hi\n04 Mar 2026-");
}

#[test]
fn tojson_writes_what_python_writes() {
    // json.dumps(..., ensure_ascii=False) of Python 3.11.
    let source = "{{ messages | tojson }}{{ messages[0].content | tojson(ensure_ascii=true) }}";
    let rendered = render(source, &[message("user", "<é & 'x'\">\n")]).unwrap();
    assert_eq!(
        rendered,
        "[{\"role\": \"user\", \"content\": \"<é & 'x'\\\">\\n\"}]\
         \"<\\u00e9 & 'x'\\\">\\n\""
    );
    let pretty = render("{{ {'b': 1, 'a': [1.0]} | tojson(indent=2, sort_keys=true) }}", &[]);
    assert_eq!(pretty.unwrap(), "{\n  \"a\": [\n    1.0\n  ],\n  \"b\": 1\n}");
}

#[test]
fn generation_tags_print_nothing() {
    let source = "a{%- generation -%} b {%- endgeneration %}c";
    assert_eq!(render(source, &[]).unwrap(), "abc");
}

#[test]
fn a_refusal_is_quoted_only_when_it_stands_in_the_template() {
    let literal = render("\n{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
    assert_eq!(
        literal,
        Failed { cause: Cause::Refusal, line: 2, reason: "roles must alternate".to_owned() }
    );
    let secret = [message("user", "my secret")];
    let built =
        render("{{ raise_exception('bad: ' + messages[0].content) }}", &secret).unwrap_err();
    assert!(!built.reason.contains("secret"), "{built:?}");
}

#[test]
fn marks_are_found_and_taken_out() {
    let source = "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}.\
                  {% endgeneration %}|{% endfor %}";
    let values = Values::new(&Conversation::from([message("a", "é"), message("b", "")].as_slice()));
    let template = compile(source).unwrap();
    let text = template.render(&values.others, &values.messages, Ask::Nothing).unwrap();
    let spans = template.marks_in(&values, &text).unwrap();
    assert_eq!(text, "a:é.|b:.|");
    assert_eq!(spans, [2..5, 8..9]);
}

#[test]
fn a_marked_text_that_is_changed_afterwards_is_refused() {
    let source = "{% set x %}{% generation %} {{ messages[0].content }} {% endgeneration %}\
                  {% endset %}{{ x | length }}{{ x | trim }}";
    let marks = |source, content| {
        let values = Values::new(&Conversation::from([message("a", content)].as_slice()));
        let template = compile(source).unwrap();
        let text = template.render(&values.others, &values.messages, Ask::Nothing).unwrap();
        template.marks_in(&values, &text)
    };
    assert!(marks(source, "b").is_err());
    // So is one that has the marks itself.
    let source = "{% generation %}{{ messages[0].content }}{% endgeneration %}";
    assert!(marks(source, "b").is_ok());
    assert!(marks(source, "\u{fdd0}b").is_err());
}

/// Renders a template that must be stopped, and on a busy machine within minutes.
fn stopped(source: &str) -> String {
    let started = Instant::now();
    let failed = render(source, &[message("user", "hi")]).unwrap_err();
    assert!(started.elapsed().as_secs_f64() < 120.0, "{:?}", started.elapsed());
    failed.reason
}

/// A loop that runs `body` a million times, with a namespace to keep things in.
fn looped(body: &str) -> String {
    let start = "{% set ns = namespace(s='aaaaaaaaaaaaaaaa', l=[1, 2]) %}\
                 {% for i in range(1000) %}{% for j in range(1000) %}";
    format!("{start}{body}{{% endfor %}}{{% endfor %}}{{{{ ns.s | length }}}}")
}

#[test]
fn an_endless_loop_runs_out_of_instructions() {
    let open = "{% for a in 'aaaaaaaaaaaaaaaa' %}".repeat(8);
    let endless = open + &"{% endfor %}".repeat(8);
    assert!(stopped(&endless).contains("instructions"));
    stopped("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
}

#[test]
fn huge_ranges_are_refused() {
    stopped("{% for a in range(10**9) %}x{% endfor %}");
    stopped("{{ range(10**9) | list }}");
    stopped(&looped("{% set ns.l = ns.l + [range(99999) | list] %}"));
}

#[test]
fn huge_strings_are_refused() {
    for source in [
        "{{ 'a' * 10**9 }}",
        "{{ 10**18 * 'a' }}",
        "{{ ['a'] * 10**9 }}",
        "{{ ([[]] * 10**7) * 10**7 }}",
        "{{ ('a' * 10**8) * 10**8 }}",
        "{{ 'a\\nb' | indent(10**10) }}",
        "{{ 'a\\nb' | indent(width=10**10) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '%*d' | format(10**10, 1) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**10) }}",
        "{{ ('a' * 10**6).replace('a', 'a' * 10**6) }}",
        "{{ ('a' * 10**6) | replace('a', 'a' * 10**6) }}",
        "{{ ('a' * 10**6) | replace('', 'a' * 10**6) }}",
        "{{ ('a' * 10**6).join(range(99999)) }}",
        "{{ range(99999) | join('a' * 10**6) }}",
        "{{ (['a' * 10**6] * 10**4) | join }}",
        "{{ (['a' * 10**6] * 10**4) | map('upper') | list }}",
        "{{ (['a' * 10**6] * 10**4) | map('replace', 'a', 'aaaaaaaaaa') | list }}",
        "{{ (['a' * 10**6] * 10**4) | tojson }}",
        "{{ (['a' * 10**6] * 10**4) ~ '' }}",
        "{{ (['a' * 10**6] * 10**4) | string }}",
        "{{ ([1] * 10**6) | tojson(indent='a' * 10**4) }}",
        "{{ strftime_now('%c' * 10**8) }}",
        "{{ ('a' * 10**8) | list }}",
        "{{ ('a' * 10**8).split('a') }}",
    ] {
        stopped(source);
    }
}

#[test]
fn strings_that_double_in_a_loop_are_refused() {
    for body in [
        "{% set ns.s = ns.s ~ ns.s %}",
        "{% set ns.s = ns.s + ns.s %}",
        "{% set ns.s = ns.s * 2 %}",
        "{% set ns.s = ns.s | replace('a', 'aa') %}",
        "{% set ns.s = ns.s.replace('a', 'aa') %}",
        "{% set ns.s = [ns.s, ns.s] | join %}",
        "{% set ns.s = ''.join([ns.s, ns.s]) %}",
        "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
        "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}",
        "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}",
        "{% set ns.s = '{0}{0}'.format(ns.s) %}",
        "{% set ns.s = ns.s | tojson | tojson %}",
        "{% set ns.l = ns.l + ns.l %}",
        "{% set ns.l = ns.l * 2 %}",
        "{% set ns.l = [ns.l, ns.l] %}",
        "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
    ] {
        stopped(&looped(body));
    }
    let doubling = "{% macro f(s, n) %}{% if n %}{{ f(s ~ s, n - 1) }}{% endif %}{% endmacro %}";
    stopped(&format!("{doubling}{{{{ f('a', 60) }}}}"));
    let recursive = "{% for s in ['a'] recursive %}{{ loop([s ~ s]) }}{% endfor %}";
    stopped(recursive);
}

#[test]
fn large_strings_cannot_be_searched_for_ever() {
    for work in [
        "{% if 'b' in ns.s %}{% endif %}",
        "{% if ns.s == ns.s ~ '' %}{% endif %}",
        "{% set x = ns.s[-1] %}",
        "{% set x = ns.s[1:] %}",
        "{% set x = ns.s | length %}",
        "{% set x = ns.s.strip() %}",
        "{% set x = ns.s.count('b') %}",
        "{% set ns.l = ns.l + [ns.s | upper] %}",
        "{% if ns.l == ns.l + [] %}{% endif %}{% if j < 16 %}{% set ns.l = [ns.l, ns.l] %}{% endif %}",
    ] {
        stopped(&looped(&format!(
            "{{% if not i and not j %}}{{% set ns.s = 'a' * 10**7 %}}{{% endif %}}{work}"
        )));
    }
}

#[test]
fn output_without_end_is_refused() {
    let text = "a".repeat(10_000);
    stopped(&looped(&text));
    stopped(&looped(&format!("{{% set x %}}{text}{{% endset %}}")));
    stopped(&looped("{{ messages | tojson }}{{ ns.s * 1000 }}"));
}

#[test]
fn macros_that_call_themselves_are_refused() {
    stopped("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    stopped("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}");
    stopped(
        "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
    );
    stopped("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}");
}

#[test]
fn things_that_hold_themselves_are_refused() {
    stopped("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}");
    stopped("{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}");
    stopped("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a }}");
    stopped(&looped("{% set ns.l = [ns.l] %}"));
    stopped(&looped("{% set ns.l = {'a': ns.l} %}"));
    stopped(&looped("{% set ns.l = dict(a=ns.l) %}"));
}

#[test]
fn sources_as_deep_as_they_are_long_compile_or_are_refused() {
    let length = MAX_SOURCE;
    for (open, middle, close) in [
        ("{{ ", "1~", "1 }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ ", "not ", "1 }}"),
        ("{{ ", "(", ""),
        ("{{ ", "[", ""),
        ("{{ a", ".a", " }}"),
        ("{{ a", "|e", " }}"),
        ("{{ a", "[0]", " }}"),
        ("{% if a %}", "{% elif a %}", "{% endif %}"),
        ("", "{% if a %}", ""),
        ("", "{% for a in a %}", ""),
        ("{{ ", "1 if 1 else ", "1 }}"),
        ("{{ ", "a and ", "1 }}"),
    ] {
        let times = (length - open.len() - close.len()) / middle.len();
        let _ = render(&format!("{open}{}{close}", middle.repeat(times)), &[]);
    }
    assert!(compile(&"a".repeat(MAX_SOURCE + 1)).unwrap_err().reason.contains("bytes"));
}

#[test]
fn other_templates_cannot_be_reached() {
    for source in ["{% include 'chat_template' %}", "{% extends 'x' %}", "{% import 'x' as x %}"] {
        stopped(source);
    }
}
