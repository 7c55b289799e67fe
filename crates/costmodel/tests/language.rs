//! The model language: what it means, what it refuses and where, and that nothing brings its reader down.

use memvirt_costmodel::lang::{MAX_DEPTH, Origin, Prior, Problem, Range};
use memvirt_costmodel::{EvalError, Model, ModelError};
use proptest::prelude::*;

const HEAD: &str = "model \"m\" title \"t\" source \"s\"\n";

fn model(body: &str) -> Model {
    Model::parse("m.model", &format!("{HEAD}{body}")).unwrap_or_else(|error| panic!("{error}\n{body}"))
}

/// The problem, and its line and column in `body`.
fn problem(body: &str) -> (Problem, usize, usize) {
    match Model::parse("m.model", &format!("{HEAD}{body}")) {
        Err(ModelError::Invalid { line, column, problem, .. }) => (*problem, line - 1, column),
        other => panic!("{other:?}\n{body}"),
    }
}

/// The value of a formula without units.
fn value(formula: &str) -> f64 {
    model(&format!("output y : 1 = {formula}")).at(&[]).unwrap_or_else(|error| panic!("{error}: {formula}"))[0]
}

#[test]
fn formulas_mean_what_mathematics_means() {
    for (formula, expected) in [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("10 - 3 - 2", 5.0),
        ("100 / 5 / 2", 10.0),
        ("2^3^2", 512.0),
        ("-2^2", -4.0),
        ("2^-1", 0.5),
        ("2 * -3", -6.0),
        ("--2", 2.0),
        ("min(3, 1, 2) + max(3, 1, 2)", 4.0),
        ("sqrt(9) + abs(-2) + floor(1.9) + ceil(1.1)", 8.0),
        ("log(exp(2)) + log2(8) + log10(1000)", 8.0),
        ("log1p(expm1(0.25))", 0.25),
        ("exp(lgamma(6))", 120.0),
        ("sum(i in 1..100 : i)", 5050.0),
        ("product(i in 1..5 : i)", 120.0),
        ("sum(i in 2..1 : i) + product(i in 2..1 : i)", 1.0),
        ("sum(i in 1..3 : sum(j in 1..i : i * j))", 1.0 + 2.0 * 3.0 + 3.0 * 6.0),
        ("if 1 < 2 then 3 else 4", 3.0),
        ("if 2 <= 1 then 3 else if 1 != 1 then 5 else 6", 6.0),
        ("if 1 == 1 and not 2 > 3 then 1 else 0", 1.0),
        ("if 1 > 2 or 2 >= 2 and 3 < 2 then 1 else 0", 0.0),
        ("1 + if 1 > 0 then 2 else 3 + 4", 3.0),
        ("4_096 * 0.5e1", 20480.0),
    ] {
        assert!((value(formula) - expected).abs() < 1e-12, "{formula} = {}", value(formula));
    }
}

#[test]
fn a_declaration_says_all_that_it_says() {
    let text = "unit epochs \"between two flushes\"\n\
        input faults : faults from native in 0.. \"guest page faults\"\n\
        input small : KiB from config in -1..64\n\
        param price : us/exits = 2.5 in 0..10 prior normal(2, 0.5) \"of an exit\"\n\
        param two : exits/faults = 2 prior fixed\n\
        let exits = two * faults \"all of them\"\n\
        output time : seconds = price * exits\n\
        output bytes_out : bytes = small";
    let model = model(text);
    let [faults, small] = model.inputs() else { panic!() };
    assert_eq!((faults.origin, faults.range.least, faults.doc.as_str()), (Origin::Native, 0.0, "guest page faults"));
    assert_eq!((small.unit.scale, small.range), (1024.0, Range { least: -1.0, most: 64.0, whole: false }));
    assert_eq!(model.params()[0].prior, Prior::Normal { mean: 2.0, sd: 0.5 });
    assert_eq!(model.params()[1].prior, Prior::Fixed);
    assert_eq!(model.values()[0].unit.unit.to_string(), "exits");
    assert!(!model.is_identity());
    // Values go in and come out in the units that the file declares: 5 exits of 2.5 us; 2 KiB.
    let out = model.at(&[("faults", 2.5), ("small", 2.0)]).unwrap();
    assert!((out[0] - 12.5e-6).abs() < 1e-18 && (out[1] - 2048.0).abs() < 1e-9, "{out:?}");
    let dearer = model.at(&[("faults", 2.5), ("small", 2.0), ("price", 5.0)]).unwrap();
    assert!((dearer[0] - 25e-6).abs() < 1e-18, "{dearer:?}");
}

#[test]
fn a_model_that_takes_a_counter_of_its_own_run_is_an_identity() {
    assert!(model("input misses : misses from run\noutput y : misses = misses").is_identity());
}

#[test]
fn a_requirement_refuses_inputs_that_do_not_go_together() {
    let inputs = "input area : KiB from config\ninput used : MiB from config\n";
    let model =
        model(&format!("{inputs}require used <= area \"a part\"\nrequire area > 0 [bytes]\noutput y : bytes = used"));
    let out = model.at(&[("area", 2048.0), ("used", 1.0)]).unwrap();
    assert!((out[0] - 1_048_576.0).abs() < 1e-9);
    let refused = |area: f64, used: f64| match model.at(&[("area", area), ("used", used)]) {
        Err(error @ EvalError::Required { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(1.0, 1.0), "m requires used <= area, but used = 1 MiB, area = 1 KiB: a part");
    assert_eq!(refused(-4096.0, -8.0), "m requires area > 0 [bytes], but area = -4096 KiB");
    let back = Model::parse("m.model", &model.text()).unwrap();
    assert_eq!((back.requirements().len(), back.text()), (2, model.text()));
    assert!(model.latex().contains("\\text{where } "));
}

#[test]
fn a_requirement_is_a_condition_on_inputs() {
    for (statement, words, column) in [
        ("require n", "expected a condition, as in `x > 0`, found a quantity", 9),
        ("require 1 < 2", "a requirement speaks of inputs; this one names none", 9),
        ("require n > k", "a requirement speaks of inputs; `k` is a parameter", 9),
        ("require n > half", "a requirement speaks of inputs; `half` is a `let`", 9),
        ("output z : 1 = n require n > 0 and z > n", "a requirement speaks of inputs; `z` is an output", 26),
        ("require n > b", "cannot compare `1` and `bytes`", 13),
    ] {
        let inputs = "input n : 1 from config\ninput b : bytes from config\nparam k : 1 = 1\nlet half = n / 2\n";
        let (problem, line, at) = problem(&format!("{inputs}{statement}\noutput y : 1 = k * half"));
        assert!(problem.to_string().starts_with(words), "{problem}");
        assert_eq!((line, at), (5, column), "{statement}");
    }
}

#[test]
fn units_must_agree_and_the_error_says_where_and_which() {
    let inputs = "input c : cycles from native\ninput b : bytes from native\n";
    let (problem, line, column) = problem(&format!("{inputs}output y : cycles = 2 * c + b"));
    let expected = Problem::Units {
        action: "add",
        left: "cycles".to_owned(),
        right: "bytes".to_owned(),
        factor: "cycles/bytes".to_owned(),
    };
    assert_eq!((problem.clone(), line, column), (expected, 3, 29));
    assert_eq!(
        problem.to_string(),
        "cannot add `cycles` and `bytes`: give one of them the other's unit, as by a factor in `cycles/bytes`"
    );
}

#[test]
fn every_kind_of_wrong_unit_is_found() {
    let inputs = "input c : cycles from native\ninput b : bytes from native\ninput n : 1 from native\n";
    for (output, words) in [
        ("y : 1 = min(c, b)", "cannot take the least of `cycles` and `bytes`"),
        ("y : 1 = if c < b then 1 else 2", "cannot compare `cycles` and `bytes`"),
        ("y : 1 = if n < 1 then c else b", "cannot choose between `cycles` and `bytes`"),
        ("y : bytes = c", "`y` is declared in `bytes`, but its formula gives `cycles`"),
        (
            "y : 1 = log(c)",
            "the argument of a logarithm, an exponential or lgamma must be a plain number, but this is `cycles`",
        ),
        ("y : 1 = n^c", "an exponent must be a plain number"),
        ("y : 1 = c^n", "`cycles` can only be raised to a constant power"),
        ("y : 1 = c^0.3", "`cycles` can only be raised to a constant power"),
        ("y : 1 = sum(i in 1..c : n)", "the bound of a range must be a plain number"),
        ("y : cycles = product(i in 1..2 : c)", "the factor of a product over a range must be a plain number"),
        ("y : 1 = c + 1", "cannot add `cycles` and `1`"),
        ("y : 1 = n < 1", "expected a quantity, found a condition"),
        ("y : 1 = if n then 1 else 2", "expected a condition"),
        ("y : 1 = 1 [cycle]", "`y` is declared in `1`"),
        ("y : cyles = c", "unknown unit `cyles`: did you mean `cycles`?"),
        ("y : cycles^100 = c", "a unit to such a power"),
        ("y : 1 = c*c^98 * c", "a unit to such a power"),
    ] {
        let (problem, line, _) = problem(&format!("{inputs}output {output}"));
        assert!(problem.to_string().contains(words) && line == 4, "{output}: {problem}");
    }
}

#[test]
fn units_that_agree_are_accepted() {
    let model = model(
        "input c : cycles from native\ninput b : KiB from native\n\
         let rate = c^2 / b\n\
         output root : cycles = sqrt(rate * b)\n\
         output total : bytes = b + 1 [KiB] + 24 [bytes]\n\
         output square : cycles^2 = sum(i in 1..2 : c^2)\n\
         output half : cycles = (c^0.5)^2",
    );
    assert_eq!(model.at(&[("c", 4.0), ("b", 3.0)]).unwrap(), [4.0, 4096.0 + 24.0, 32.0, 4.0]);
}

#[test]
fn errors_stand_where_they_are() {
    for (body, line, column, words) in [
        ("output y : 1 = 1 +", 1, 19, "expected a number, a name or `(`, found the end of the file"),
        ("output y : 1 = (1", 1, 18, "expected `)` or an operator"),
        ("let a = 1\nlet a = 2", 2, 5, "`a` is already taken"),
        ("let min = 1", 1, 5, "`min` is already taken"),
        ("let a = fautls", 1, 9, "`fautls` is not declared above"),
        ("input faults : 1 from native let a = fautls", 1, 38, "did you mean `faults`?"),
        ("let a = b\nlet b = 1", 1, 9, "`b` is not declared above"),
        ("let a = 3 4", 1, 11, "expected a statement"),
        ("let a = 3x", 1, 9, "`3x` is no number"),
        ("let a = sqrt(1, 2)", 1, 9, "`sqrt` takes one, not 2 argument(s)"),
        ("let a = min(1)", 1, 9, "`min` takes two or more, not 1 argument(s)"),
        ("let a = \u{fc}", 1, 9, "unexpected character"),
        ("let a = 1 \"open", 1, 11, "this string has no end"),
        ("input a : 1", 1, 12, "`from` and the input's origin"),
        ("input a : 1 from here", 1, 18, "config, machine, stream, native, one_vcpu or run"),
        ("param a : 1 = 5 in 0..4", 1, 15, "the value lies outside the bounds"),
        ("param a : 1 = 5 in 9..4", 1, 20, "a range begins with its lower bound"),
        ("input a : 1 from config in whole 0.2..0.8", 1, 28, "there is no whole number in this range"),
        ("param a : 1 = 5 prior normal(1, 0)", 1, 23, "a standard deviation is above 0"),
        ("param a : 1 = 5 prior lognormal(1, 1)", 1, 23, "a factor above 1"),
        ("unit cycles", 1, 6, "`cycles` is already taken"),
        ("model \"again\"", 1, 1, "`model` stands once in a file"),
        ("let a = 1", 1, 10, "the model has no output"),
        ("let a = sum(a in 1..2 : a)\nlet b = sum(a in 1..2 : a)", 2, 13, "`a` is already taken"),
        ("let a = sum(i in 1..2 : 1) + i", 1, 30, "`i` is not declared above"),
    ] {
        let (problem, at_line, at_column) = problem(body);
        assert!(problem.to_string().contains(words), "{body}: {problem}");
        assert_eq!((at_line, at_column), (line, column), "{body}: {problem}");
    }
}

#[test]
fn a_point_must_be_whole_known_and_within_bounds() {
    let model = model("input n : 1 from config in 1..10\nparam p : 1 = 2 in 0..\noutput y : 1 = p / (n - 2)");
    assert_eq!(model.at(&[("n", 4.0)]), Ok(vec![1.0]));
    let name = |text: &str| text.to_owned();
    assert_eq!(model.at(&[]), Err(EvalError::Missing { model: name("m"), name: name("n") }));
    assert!(matches!(model.at(&[("n", 4.0), ("q", 1.0)]), Err(EvalError::Unknown { .. })));
    assert!(matches!(model.at(&[("n", 11.0)]), Err(EvalError::OutOfRange { .. })));
    for endless in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(matches!(model.at(&[("n", endless)]), Err(EvalError::NoNumber { .. })));
    }
    assert!(matches!(model.at(&[("n", 4.0), ("p", -1.0)]), Err(EvalError::OutOfRange { .. })));
    let whole = self::model("input n : 1 from config in whole 1..10\noutput y : 1 = n");
    assert_eq!(whole.at(&[("n", 4.0)]), Ok(vec![4.0]));
    let refused = whole.at(&[("n", 4.5)]).unwrap_err().to_string();
    assert_eq!(refused, "m: n = 4.5 lies outside the whole numbers 1..10");
    let far = whole.at(&[("n", 1e300)]).unwrap_err().to_string();
    assert_eq!(far, "m: n = 1e300 lies outside the whole numbers 1..10");
    assert!(matches!(model.at(&[("n", 2.0)]), Err(EvalError::NotFinite { .. })));
    assert!(matches!(model.evaluate(&[1.0, 2.0], &[2.0]), Err(EvalError::Count { what: "inputs", .. })));
}

#[test]
fn a_result_that_is_no_number_goes_back_to_the_part_and_the_values_at_fault() {
    let inputs = "input a : 1 from config\ninput b : KiB from config\n";
    let refused =
        |formulas: &str| model(&format!("{inputs}{formulas}")).at(&[("a", 0.0), ("b", 3.0)]).unwrap_err().to_string();
    for (formulas, why) in [
        ("let z = 1 / a\noutput y : 1 = 2 + z", "`z` is inf at this point: `1 / a` with a = 0 is a division by zero"),
        (
            "output y : 1 = 1 - log(a - 1)",
            "`y` is NaN at this point: `log(a - 1)` with a = 0 is the logarithm of what is not above 0",
        ),
        (
            "output y : 1 = if a > 0 then 1 else 2 * sqrt(a - b / 1 [KiB])",
            "`sqrt(a - b / 1 [KiB])` with a = 0, b = 3 KiB is the root of a negative number",
        ),
        ("output y : 1 = a^(-2)", "`a^-2` with a = 0 is a division by zero"),
        ("output y : 1 = exp(1000)", "`exp(1000)` is beyond the largest number, about 1.8e308"),
        ("output y : 1 = 1e308 * (b / 1 [bytes])", "with b = 3 KiB is beyond the largest number"),
        ("output y : 1 = sum(i in 0..2 : 1 / i)", "is a sum or product with a term that is no number"),
    ] {
        let said = refused(formulas);
        assert!(said.contains(why), "{formulas}: {said}");
    }
    // A part that is infinite and of no consequence is not to blame.
    let harmless = "let z = 1 / a\noutput x : 1 = min(z, 5)\noutput y : 1 = 1 / (a * a)";
    assert!(refused(harmless).contains("`1 / (a * a)` with a = 0 is a division by zero"), "{}", refused(harmless));
}

/// Every comparison with what is no number is false, `!=` and `not` of them true: requirements let such points pass.
#[test]
fn a_comparison_with_what_is_no_number_is_refused_with_the_part_and_the_values_at_fault() {
    let log = "`log(a)` with a = -1 is the logarithm of what is not above 0";
    let over = "`b / c` with b = 0, c = 0 is a division by zero";
    for (formulas, condition, why) in [
        ("require not (log(a) > 1) \"w\" output y : 1 = 1", "log(a) > 1", log),
        ("require log(a) != 3 output y : 1 = 1", "log(a) != 3", log),
        ("require not (b / c < 1) output y : 1 = 1", "b / c < 1", over),
        (
            "require b < 1 and (c > 1 or 1 <= 2 * b / c) output y : 1 = 1",
            "1 <= 2 * b / c",
            "`2 * b / c` with b = 0, c = 0",
        ),
        ("output y : 1 = if log(a) > 0 then 1 else 2", "log(a) > 0", log),
        ("let r = b / c output y : 1 = 3 - (if r == 2 then 1 else 2)", "r == 2", over),
        // The variable of the sum around it is not that of the sum in the `let`.
        (
            "let r = sum(i in 0..1 : sqrt(a - i)) output y : 1 = sum(i in 5..7 : sum(j in 1..2 : if r < j then 1 else 2))",
            "r < j",
            "`sum(i in 0..1 : sqrt(a - i))` with a = -1 is a sum or product with a term that is no number",
        ),
        // log(0) is minus infinity, which compares; log(-1) does not.
        (
            "output y : 1 = sum(i in 5..7 : if i < 6 or log(6 - i) < 1 then 1 else 2)",
            "log(6 - i) < 1",
            "`log(6 - i)` is",
        ),
    ] {
        let inputs = "input a : 1 from config\ninput b : 1 from config\ninput c : 1 from config\n";
        let model = model(&format!("{inputs}{formulas}"));
        let said = model.at(&[("a", -1.0), ("b", 0.0), ("c", 0.0)]);
        let expected = format!("m: whether {condition} cannot be said at this point: {why}");
        let said = said.unwrap_err().to_string();
        assert!(said.starts_with(&expected), "{formulas}: {said}\n{expected}");
    }
    // What is infinite compares like any number.
    assert!((value("if 1 / 0 > 3 then 1 else 2") - 1.0).abs() < 1e-12);
}

#[test]
fn errors_show_the_beginning_of_names_without_end_and_few_digits() {
    let long = "a".repeat(300_000);
    let shown = "a".repeat(60) + "…`";
    for body in [
        format!("output y : 1 = {long}"),
        format!("output y : {long} = 1"),
        format!("let {long} = 1 let {long} = 2"),
        format!("param {long} : 1 = 1 require {long} > 0"),
        format!("let {long} : pages = 1"),
        format!("unit {long} unit {long}"),
    ] {
        let said = problem(&body).0.to_string();
        assert!(said.contains(&shown) && said.len() < 300, "{} characters: {said:.200}", said.len());
    }
    let model = model("input n : 1 from config in -1e300..2e200\nrequire n < 1e100\noutput y : 1 = n");
    assert!(model.at(&[(&long, 1.0)]).unwrap_err().to_string().contains(&shown));
    assert!(model.text().contains("in -1e300..2e200"));
    assert_eq!(model.at(&[("n", 3e250)]).unwrap_err().to_string(), "m: n = 3e250 lies outside -1e300..2e200");
    assert_eq!(model.at(&[("n", 1e150)]).unwrap_err().to_string(), "m requires n < 1e100, but n = 1e150");
    let long = Model::find(&long).unwrap_err().to_string();
    assert!(long.contains(&shown) && long.len() < 1000, "{long:.200}");
}

#[test]
fn sums_end() {
    let endless = model("output y : 1 = sum(i in 1..1e12 : i)");
    assert!(matches!(endless.at(&[]), Err(EvalError::Terms { .. })));
    let half = model("output y : 1 = sum(i in 1..2.5 : i)");
    assert!(matches!(half.at(&[]), Err(EvalError::Terms { .. })));
    let nested = model("output y : 1 = sum(i in 1..1e5 : sum(j in 1..1e5 : sum(k in 1..1e5 : 1)))");
    assert!(matches!(nested.at(&[]), Err(EvalError::TooManySteps { .. })));
}

#[test]
fn depth_is_bounded_by_an_error() {
    let nested = |n: usize| format!("output y : 1 = {}1{}", "(".repeat(n), ")".repeat(n));
    assert!((model(&nested(MAX_DEPTH - 1)).at(&[]).unwrap()[0] - 1.0).abs() < 1e-12);
    assert_eq!(problem(&nested(MAX_DEPTH)).0, Problem::TooDeep);
    for (open, close) in
        [("(", ")"), ("-", ""), ("2^", ""), ("sqrt(", ")"), ("if 1 < 2 then 1 else ", ""), ("1+(", ")")]
    {
        let text = format!("output y : 1 = {}1{}", open.repeat(40_000), close.repeat(40_000));
        assert_eq!(problem(&text).0, Problem::TooDeep, "{open}");
    }
    let not = format!("output y : 1 = if {} 1 < 2 then 1 else 2", "not ".repeat(100_000));
    assert_eq!(problem(&not).0, Problem::TooDeep);
}

#[test]
fn long_flat_files_are_read_evaluated_and_dropped_on_a_small_stack() {
    let small = std::thread::Builder::new().stack_size(256 << 10);
    let worker = small.spawn(|| {
        let sum = model(&format!("output y : 1 = 1{}", "+1".repeat(200_000)));
        assert_eq!(sum.at(&[]), Ok(vec![200_001.0]));
        let lets: String = (1..40_000).map(|i| format!("let a{i} = a{} + 1\n", i - 1)).collect();
        let chain = model(&format!("let a0 = 0\n{lets}output y : 1 = a39999"));
        assert_eq!(chain.at(&[]), Ok(vec![39_999.0]));
        let deepest = "1 + 2 * -(".repeat(MAX_DEPTH / 2 - 1) + "1" + &")".repeat(MAX_DEPTH / 2 - 1);
        let deepest = model(&format!("output y : 1 = {deepest}"));
        assert!(deepest.at(&[]).is_ok() && !deepest.text().is_empty() && !deepest.latex().is_empty());
    });
    worker.unwrap().join().unwrap();
}

#[test]
fn text_is_canonical_and_latex_has_fractions_cases_and_sums() {
    let model = model(
        "input n : 1 from config\nlet walk_refs = (n+1)*(n+1)-1\n\
         output y : 1 = if n>2 then walk_refs/n/2 else sum(i in 0..3: (n-i)^2)",
    );
    let values: Vec<_> = model.values().iter().map(memvirt_costmodel::lang::Value::text).collect();
    assert_eq!(
        values,
        [
            "let walk_refs = (n + 1) * (n + 1) - 1",
            "output y : 1 = if n > 2 then walk_refs / n / 2 else sum(i in 0..3 : (n - i)^2)",
        ]
    );
    assert_eq!(
        model.latex(),
        "% m: t\n\\begin{align*}\n  \\mathit{walk\\_refs} &= \\left(n + 1\\right) \\cdot \\left(n + 1\\right) - 1 \\\\\n  \
         y &= \\begin{cases} \\frac{\\mathit{walk\\_refs}}{n \\cdot 2} & \\text{if } n > 2 \\\\ \
         \\sum_{i=0}^{3} {\\left(n - i\\right)}^{2} & \\text{otherwise} \\end{cases}\n\\end{align*}\n"
    );
}

/// A formula over `x` and `y` and the variables of the sums around it, with as few parentheses as chance leaves.
fn formula(depth: u32) -> BoxedStrategy<String> {
    let leaf = prop_oneof![Just("x".to_owned()), Just("y".to_owned()), (0u32..9).prop_map(|n| n.to_string())];
    leaf.prop_recursive(depth, 40, 4, |inner| {
        let mark = prop_oneof![Just("+"), Just("-"), Just("*"), Just("/"), Just("^")];
        prop_oneof![
            (inner.clone(), mark, inner.clone()).prop_map(|(a, mark, b)| format!("{a} {mark} {b}")),
            inner.clone().prop_map(|a| format!("({a})")),
            inner.clone().prop_map(|a| format!("-({a})")),
            inner.clone().prop_map(|a| format!("sqrt({a})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("max({a}, {b})")),
            (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("(if {a} < {b} and not {b} == {c} then {c} else {a})")),
            inner.prop_map(|a| format!("sum(k in 0..2 : {a} + k)")),
        ]
    })
    .boxed()
}

proptest! {
    #![proptest_config(memvirt_properties::cases(512))]

    /// What is written out reads back, renders alike and computes the very same.
    #[test]
    fn text_reads_back_as_the_same_model(formula in formula(5), x in -3.0..3.0f64, y in 0.1..3.0f64) {
        let text = format!("{HEAD}input x : 1 from config\ninput y : 1 from config\noutput z : 1 = {formula}");
        // Sums of one variable within each other are refused; all else here is a model.
        let Ok(first) = Model::parse("m", &text) else { return Ok(()) };
        let second = Model::parse("m", &first.text()).unwrap();
        prop_assert_eq!(first.text(), second.text());
        let point = [("x", x), ("y", y)];
        // Written as text: NaN equals nothing.
        prop_assert_eq!(format!("{:?}", first.at(&point)), format!("{:?}", second.at(&point)));
    }

    /// Bytes are read as a model or refused; nothing panics.
    #[test]
    fn any_bytes_end_in_a_model_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Model::parse("m", &String::from_utf8_lossy(&bytes));
    }

    /// The language's own words in any order.
    #[test]
    fn any_words_end_in_a_model_or_an_error(picks in proptest::collection::vec(0usize..58, 0..120)) {
        const WORDS: [&str; 59] = [
            "model", "title", "about", "source", "unit", "input", "param", "require", "let", "output", "from", "in", "prior", "if",
            "then", "else", "and", "or", "not", "sum", "product", "fixed", "normal", "lognormal", "min", "log", "(", ")",
            "[", "]", ",", ":", "..", "+", "-", "*", "/", "^", "<", "<=", "==", "=", "0", "1", "2.5", "1e9", "a", "b",
            "cycles", "bytes", "KiB", "native", "run", "\"text\"", "# comment\n", "\n", "\"", "i", "1e300",
        ];
        let body: Vec<_> = picks.iter().map(|i| WORDS[*i]).collect();
        for head in ["", HEAD, "model \"m\" title \"t\" source \"s\" input a : 1 from run let b = a output c : 1 = "] {
            if let Ok(model) = Model::parse("m", &format!("{head} {}", body.join(" "))) {
                let point: Vec<_> = model.inputs().iter().map(|input| (input.name.as_str(), 1.0)).collect();
                let _ = (model.at(&point), model.latex());
                prop_assert!(Model::parse("m", &model.text()).is_ok(), "{}", model.text());
            }
        }
    }
}

#[test]
fn a_mebibyte_of_anything_is_read_in_time_proportional_to_its_length() {
    let units: String = (0..64).map(|i| format!("unit u{i}\n")).collect();
    let product: String = (0..64).map(|i| format!("*u{i}/u{}", 63 - i)).collect();
    let pad = |text: &str, room: usize| text.repeat(((1 << 20) - 10_000 - room) / text.len());
    let flat = |text: &str| format!("{HEAD}input n : 1 from config\noutput y : 1 = 1{}", pad(text, 0));
    let texts = [
        flat(" + n"),
        flat("*1 [cycles]/1 [cycles]"),
        flat(" + min(n, 1)"),
        flat(" + (if n < 1 and n > 0 or n == 2 then 1 else n)"),
        flat(" + sum(i in 1..2 : i)"),
        format!("{HEAD}{units}output y : 1 = 1{}", format!("*1 [1{product}]").repeat(1000)),
        format!("{HEAD}{}", (0..60_000).map(|i| format!("let a{i}=1\n")).collect::<String>()),
        pad("# comment\n", 0),
        pad("unit a ", 0),
        format!("\"{}", pad("a\\\"", 0)),
        pad("[", 0),
        pad("- ", 0),
        pad("\u{fc}", 0),
    ];
    for text in texts {
        let started = std::time::Instant::now();
        let _ = Model::parse("m", &text);
        // A second or so each; anything quadratic would take hours.
        let begins: String = text.chars().take(90).collect();
        assert!(started.elapsed().as_secs() < 60, "{begins}");
    }
}
