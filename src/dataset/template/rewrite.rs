//! The template's syntax tree, rewritten so that every operation answers to the budget.
//!
//! Owns the copy of the tree in which operators that can grow a value are calls of
//! [`super::budget`]'s filters, text goes through the formatter, and a generation block has
//! a scope of its own (as Jinja's call blocks have). The tree is that of minijinja's parser,
//! so the grammar is its; nothing here knows what an operation means.

use minijinja::machinery::{Span, ast};
use minijinja::value::Value;

use super::budget::{CONCAT, HELD, ITERATED, MULTIPLY, SIZE, SLICE, STORED, TREE};
use super::tags::GENERATION;

type Expr<'a> = ast::Expr<'a>;
type Stmt<'a> = ast::Stmt<'a>;

/// Copies a whole template.
pub(super) fn template<'a>(root: &Stmt<'a>) -> Stmt<'a> {
    statement(root)
}

fn body<'a>(statements: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    statements.iter().map(statement).collect()
}

fn spanned<T>(node: T, span: Span) -> ast::Spanned<T> {
    ast::Spanned::new(node, span)
}

fn statement<'a>(statement: &Stmt<'a>) -> Stmt<'a> {
    match statement {
        Stmt::Template(s) => {
            Stmt::Template(spanned(ast::Template { children: body(&s.children) }, s.span()))
        }
        Stmt::EmitExpr(s) => {
            Stmt::EmitExpr(spanned(ast::EmitExpr { expr: expression(&s.expr) }, s.span()))
        }
        // Text is printed like a value: that way the formatter counts it.
        Stmt::EmitRaw(s) => {
            let text = spanned(ast::Const { value: Value::from(s.raw) }, s.span());
            Stmt::EmitExpr(spanned(ast::EmitExpr { expr: Expr::Const(text) }, s.span()))
        }
        Stmt::ForLoop(s) => Stmt::ForLoop(spanned(for_loop(s), s.span())),
        Stmt::IfCond(s) => {
            let node = ast::IfCond {
                expr: expression(&s.expr),
                true_body: body(&s.true_body),
                false_body: body(&s.false_body),
            };
            Stmt::IfCond(spanned(node, s.span()))
        }
        Stmt::WithBlock(s) => {
            let assigned = s.assignments.iter().map(|(to, from)| (plain(to), expression(from)));
            let node = ast::WithBlock { assignments: assigned.collect(), body: body(&s.body) };
            Stmt::WithBlock(spanned(node, s.span()))
        }
        Stmt::Set(s) => Stmt::Set(spanned(set(s), s.span())),
        Stmt::SetBlock(s) => {
            let node = ast::SetBlock {
                target: plain(&s.target),
                filter: s.filter.as_ref().map(expression),
                body: body(&s.body),
            };
            Stmt::SetBlock(spanned(node, s.span()))
        }
        Stmt::AutoEscape(s) => {
            let node = ast::AutoEscape { enabled: expression(&s.enabled), body: body(&s.body) };
            Stmt::AutoEscape(spanned(node, s.span()))
        }
        Stmt::FilterBlock(s) => filter_block(s),
        Stmt::Block(s) => {
            let node = ast::Block { name: s.name, required: s.required, body: body(&s.body) };
            Stmt::Block(spanned(node, s.span()))
        }
        // There is no other template to name: these fail when they run.
        Stmt::Import(s) => {
            let node = ast::Import { expr: expression(&s.expr), name: plain(&s.name) };
            Stmt::Import(spanned(node, s.span()))
        }
        Stmt::FromImport(s) => {
            let names = s.names.iter().map(|(a, b)| (plain(a), b.as_ref().map(plain)));
            let node = ast::FromImport { expr: expression(&s.expr), names: names.collect() };
            Stmt::FromImport(spanned(node, s.span()))
        }
        Stmt::Extends(s) => {
            Stmt::Extends(spanned(ast::Extends { name: expression(&s.name) }, s.span()))
        }
        Stmt::Include(s) => {
            let node = ast::Include { name: expression(&s.name), ignore_missing: s.ignore_missing };
            Stmt::Include(spanned(node, s.span()))
        }
        Stmt::Macro(s) => Stmt::Macro(spanned(macro_declaration(s), s.span())),
        Stmt::CallBlock(s) => {
            let node = ast::CallBlock {
                call: spanned(call(&s.call), s.call.span()),
                macro_decl: spanned(macro_declaration(&s.macro_decl), s.macro_decl.span()),
            };
            Stmt::CallBlock(spanned(node, s.span()))
        }
        Stmt::Continue(s) => Stmt::Continue(spanned(ast::Continue, s.span())),
        Stmt::Break(s) => Stmt::Break(spanned(ast::Break, s.span())),
        Stmt::Do(s) => {
            let node = ast::Do { call: spanned(call(&s.call), s.call.span()) };
            Stmt::Do(spanned(node, s.span()))
        }
    }
}

fn for_loop<'a>(s: &ast::ForLoop<'a>) -> ast::ForLoop<'a> {
    ast::ForLoop {
        target: plain(&s.target),
        iter: filtered(ITERATED, expression(&s.iter), Vec::new(), s.iter.span()),
        filter_expr: s.filter_expr.as_ref().map(expression),
        recursive: s.recursive,
        body: body(&s.body),
        else_body: body(&s.else_body),
    }
}

/// What is kept in a namespace outlives the loop, so it alone can grow from turn to turn.
fn set<'a>(s: &ast::Set<'a>) -> ast::Set<'a> {
    let expr = match s.target {
        Expr::GetAttr(_) => guarded(STORED, &s.expr),
        _ => expression(&s.expr),
    };
    ast::Set { target: plain(&s.target), expr }
}

fn filter_block<'a>(s: &ast::Spanned<ast::FilterBlock<'a>>) -> Stmt<'a> {
    let mut inside = body(&s.body);
    if matches!(&s.filter, Expr::Filter(filter) if filter.name == GENERATION) {
        let scope = ast::WithBlock { assignments: Vec::new(), body: inside };
        inside = vec![Stmt::WithBlock(spanned(scope, s.span()))];
    }
    let node = ast::FilterBlock { filter: expression(&s.filter), body: inside };
    Stmt::FilterBlock(spanned(node, s.span()))
}

fn macro_declaration<'a>(s: &ast::Macro<'a>) -> ast::Macro<'a> {
    ast::Macro {
        name: s.name,
        args: s.args.iter().map(plain).collect(),
        defaults: s.defaults.iter().map(expression).collect(),
        body: body(&s.body),
    }
}

fn call<'a>(s: &ast::Call<'a>) -> ast::Call<'a> {
    ast::Call { expr: plain(&s.expr), args: arguments(&s.args) }
}

fn arguments<'a>(arguments: &[ast::CallArg<'a>]) -> Vec<ast::CallArg<'a>> {
    let argument = |argument: &ast::CallArg<'a>| match argument {
        ast::CallArg::Pos(value) => ast::CallArg::Pos(expression(value)),
        ast::CallArg::Kwarg(name, value) => ast::CallArg::Kwarg(name, expression(value)),
        ast::CallArg::PosSplat(value) => ast::CallArg::PosSplat(expression(value)),
        ast::CallArg::KwargSplat(value) => ast::CallArg::KwargSplat(expression(value)),
    };
    arguments.iter().map(argument).collect()
}

/// A call of one of the budget's filters.
fn filtered<'a>(
    name: &'static str,
    value: Expr<'a>,
    args: Vec<ast::CallArg<'a>>,
    span: Span,
) -> Expr<'a> {
    Expr::Filter(spanned(ast::Filter { name, expr: Some(value), args }, span))
}

/// An operand that is counted before it is used; constants are as long as the source.
fn guarded<'a>(name: &'static str, value: &Expr<'a>) -> Expr<'a> {
    match value {
        Expr::Const(_) => plain(value),
        _ => filtered(name, expression(value), Vec::new(), value.span()),
    }
}

/// A name, an attribute or a subscript: what can be assigned to or called.
fn plain<'a>(target: &Expr<'a>) -> Expr<'a> {
    match target {
        Expr::Var(s) => Expr::Var(spanned(ast::Var { id: s.id }, s.span())),
        Expr::Const(s) => Expr::Const(spanned(ast::Const { value: s.value.clone() }, s.span())),
        Expr::GetAttr(s) => {
            let node = ast::GetAttr { expr: expression(&s.expr), name: s.name };
            Expr::GetAttr(spanned(node, s.span()))
        }
        Expr::List(s) => {
            Expr::List(spanned(ast::List { items: s.items.iter().map(plain).collect() }, s.span()))
        }
        Expr::Tuple(s) => Expr::Tuple(spanned(
            ast::Tuple { items: s.items.iter().map(plain).collect() },
            s.span(),
        )),
        other => expression(other),
    }
}

fn expressions<'a>(items: &[Expr<'a>]) -> Vec<Expr<'a>> {
    items.iter().map(expression).collect()
}

fn expression<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    match expr {
        Expr::Var(_) | Expr::Const(_) | Expr::GetAttr(_) => plain(expr),
        Expr::Slice(s) => {
            let none = || Expr::Const(spanned(ast::Const { value: Value::from(()) }, span));
            let bound = |bound: &Option<Expr<'a>>| {
                ast::CallArg::Pos(bound.as_ref().map_or_else(none, expression))
            };
            let bounds = vec![bound(&s.start), bound(&s.stop), bound(&s.step)];
            filtered(SLICE, expression(&s.expr), bounds, span)
        }
        Expr::UnaryOp(s) => {
            let negates = matches!(s.op, ast::UnaryOpKind::Neg);
            let op = if negates { ast::UnaryOpKind::Neg } else { ast::UnaryOpKind::Not };
            Expr::UnaryOp(spanned(ast::UnaryOp { op, expr: expression(&s.expr) }, span))
        }
        Expr::BinOp(s) => binary(s, span),
        Expr::Compare(s) => {
            let operation = |op: &ast::CompareOp<'a>| ast::CompareOp {
                op: op.op,
                expr: guarded(TREE, &op.expr),
            };
            let node = ast::Compare {
                expr: guarded(TREE, &s.expr),
                ops: s.ops.iter().map(operation).collect(),
            };
            Expr::Compare(spanned(node, span))
        }
        Expr::IfExpr(s) => {
            let node = ast::IfExpr {
                test_expr: expression(&s.test_expr),
                true_expr: expression(&s.true_expr),
                false_expr: s.false_expr.as_ref().map(expression),
            };
            Expr::IfExpr(spanned(node, span))
        }
        Expr::Filter(s) => {
            let node = ast::Filter {
                name: s.name,
                expr: s.expr.as_ref().map(expression),
                args: arguments(&s.args),
            };
            Expr::Filter(spanned(node, span))
        }
        Expr::Test(s) => {
            let node =
                ast::Test { name: s.name, expr: expression(&s.expr), args: arguments(&s.args) };
            Expr::Test(spanned(node, span))
        }
        Expr::GetItem(s) => {
            let node = ast::GetItem {
                expr: guarded(SIZE, &s.expr),
                subscript_expr: expression(&s.subscript_expr),
            };
            Expr::GetItem(spanned(node, span))
        }
        Expr::Call(s) => Expr::Call(spanned(call(s), span)),
        Expr::List(s) => {
            let node = Expr::List(spanned(ast::List { items: expressions(&s.items) }, span));
            held_unless_constant(node, &s.items, span)
        }
        Expr::Tuple(s) => {
            let node = Expr::Tuple(spanned(ast::Tuple { items: expressions(&s.items) }, span));
            held_unless_constant(node, &s.items, span)
        }
        Expr::Map(s) => {
            let node = ast::Map { keys: expressions(&s.keys), values: expressions(&s.values) };
            held_unless_constant(Expr::Map(spanned(node, span)), &s.values, span)
        }
    }
}

fn held_unless_constant<'a>(node: Expr<'a>, items: &[Expr<'a>], span: Span) -> Expr<'a> {
    if items.iter().all(|item| matches!(item, Expr::Const(_))) {
        return node;
    }
    filtered(HELD, node, Vec::new(), span)
}

fn binary<'a>(s: &ast::BinOp<'a>, span: Span) -> Expr<'a> {
    use ast::BinOpKind as Op;
    let operator = match s.op {
        Op::Concat => CONCAT,
        Op::Mul => MULTIPLY,
        op => {
            let (left, right) = match op {
                Op::ScAnd | Op::ScOr => (expression(&s.left), expression(&s.right)),
                Op::Add => (guarded(SIZE, &s.left), guarded(SIZE, &s.right)),
                _ => (guarded(TREE, &s.left), guarded(TREE, &s.right)),
            };
            return Expr::BinOp(spanned(ast::BinOp { op, left, right }, span));
        }
    };
    let right = vec![ast::CallArg::Pos(expression(&s.right))];
    filtered(operator, expression(&s.left), right, span)
}
