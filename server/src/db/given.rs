//! Lists as one parameter.
//!
//! A statement over a list keeps one text, and so one plan, however long the list is: the list is bound as `$1`, as one JSON
//! array. How an array becomes rows is one of the few things that the databases say differently; it is said here and nowhere
//! else.

use super::Kind;
use serde::ser::{Error as _, Serialize, Serializer};

/// A text around the rows of an array of objects: a table `given` with these columns. `insert "TABLE …"` and `update "TABLE …"`
/// write, any other text reads.
///
/// With `at COLUMN = FIELD` the rows are joined there. PostgreSQL is told the values once more as an array: it takes an array
/// for few rows and looks them up by the index, while it takes `given` for a hundred and may read the whole table. `lock` ends the
/// text on PostgreSQL, where rows are locked by name.
///
/// SQLite writes `OR FAIL`: otherwise it keeps a copy of every page that a statement changes, to undo that statement alone
/// (<https://sqlite.org/lang_conflict.html>). Nothing here goes on after an error, a transaction is undone as a whole. The copies
/// were about a tenth of what a claim cost.
macro_rules! given {
    (@sqlite $before:expr, [$($name:ident $kind:ident),+ $(,)?], $after:expr) => {
        concat!(
            $before,
            "(SELECT ", $($crate::db::given::from_json!($name $kind), " AS ", stringify!($name), ", ",)+
            // Unlike `json_each` it hands out objects as they are read already, and not as text.
            "key AS place FROM jsonb_each($1)) AS given",
            $after
        )
    };
    (@postgres $before:expr, [$($name:ident $kind:ident),+ $(,)?], $after:expr) => {
        concat!(
            $before,
            "jsonb_to_recordset($1) AS given (", $(stringify!($name), " ", stringify!($kind), ", ",)+ "place bigint)",
            $after
        )
    };
    (@both $on:expr, $sqlite:expr, $postgres:expr, [$($columns:tt)+], $after:literal) => {
        match $on.kind() {
            $crate::db::Kind::Sqlite => $crate::db::given::given!(@sqlite $sqlite, [$($columns)+], $after),
            $crate::db::Kind::Postgres => $crate::db::given::given!(@postgres $postgres, [$($columns)+], $after),
        }
    };
    (@both $on:expr, $sqlite:expr, $postgres:expr, [$($columns:tt)+], at $column:literal = $field:literal, $after:literal
     $(, lock $lock:literal)?) => {
        match $on.kind() {
            $crate::db::Kind::Sqlite => $crate::db::given::given!(
                @sqlite $sqlite, [$($columns)+], concat!(" WHERE ", $column, " = given.", $field, $after)
            ),
            $crate::db::Kind::Postgres => $crate::db::given::given!(
                @postgres $postgres, [$($columns)+], concat!(
                    " WHERE ", $column, " = given.", $field, " AND ", $column,
                    " = ANY (ARRAY(SELECT one ->> '", $field, "' FROM jsonb_array_elements($1) AS one))",
                    $after $(, $lock)?
                )
            ),
        }
    };
    (@both $on:expr, $sqlite:expr, $postgres:expr, [$($columns:tt)+], on $table:literal = $field:literal, $after:literal) => {
        match $on.kind() {
            $crate::db::Kind::Sqlite => $crate::db::given::given!(
                @sqlite $sqlite, [$($columns)+], concat!(" WHERE ", $table, ".id = given.", $field, $after)
            ),
            $crate::db::Kind::Postgres => $crate::db::given::given!(
                @postgres $postgres, [$($columns)+],
                concat!(" ON locked.id = given.", $field, " WHERE ", $table, ".id = locked.id", $after)
            ),
        }
    };
    ($on:expr, insert $into:literal, $($rest:tt)+) => {
        $crate::db::given::given!(
            @both $on, concat!("INSERT OR FAIL INTO ", $into), concat!("INSERT INTO ", $into), $($rest)+
        )
    };
    ($on:expr, update $table:literal, $($rest:tt)+) => {
        $crate::db::given::given!(
            @both $on, concat!("UPDATE OR FAIL ", $table), concat!("UPDATE ", $table), $($rest)+
        )
    };
    ($on:expr, $before:literal, $($rest:tt)+) => {
        $crate::db::given::given!(@both $on, $before, $before, $($rest)+)
    };
}
pub(crate) use given;

/// JSON as a field of a list: SQLite is told the text that it keeps, and need not take it apart and put it together again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept<'a, T>(pub Kind, pub &'a T);

impl<T: Serialize> Serialize for Kept<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Kind::Sqlite => serializer.serialize_str(&serde_json::to_string(self.1).map_err(S::Error::custom)?),
            Kind::Postgres => self.1.serialize(serializer),
        }
    }
}

/// One field of an object, as SQLite reads it.
macro_rules! from_json {
    ($name:ident $kind:ident) => {
        concat!("value ->> '$.", stringify!($name), "'")
    };
}
pub(crate) use from_json;

/// A text that updates the rows of a table whose ids are the fields `$field` of an array of objects, as [`given`] does it.
///
/// PostgreSQL locks them in the order of their ids before it writes the first, in the same statement: two transactions that write
/// the same rows do not wait for each other in a ring. SQLite has one writer.
macro_rules! update_in_order {
    ($on:expr, $table:literal SET $set:literal, [$($columns:tt)+], $field:literal, $after:literal) => {
        $crate::db::given::given!(
            @both $on,
            concat!("UPDATE OR FAIL ", $table, " SET ", $set, " FROM "),
            concat!(
                "WITH locked AS (SELECT id FROM ", $table, " WHERE id = ANY (ARRAY(SELECT one ->> '", $field,
                "' FROM jsonb_array_elements($1) AS one)) ORDER BY id FOR NO KEY UPDATE) UPDATE ", $table, " SET ", $set,
                " FROM locked JOIN "
            ),
            [$($columns)+],
            on $table = $field,
            $after
        )
    };
}
pub(crate) use update_in_order;

/// A text around the condition that a column's value is one of an array of texts; `lock` ends it on PostgreSQL, where rows are
/// locked by name. `update "TABLE …"` writes, as [`given`] does it.
///
/// PostgreSQL gets an array and no join: its planner takes that for few rows and looks them up by the index.
macro_rules! listed {
    ($on:expr, update $table:literal, $column:literal, $after:literal) => {
        match $on.kind() {
            $crate::db::Kind::Sqlite => {
                concat!("UPDATE OR FAIL ", $table, $column, " IN (SELECT value FROM json_each($1))", $after)
            }
            $crate::db::Kind::Postgres => {
                concat!("UPDATE ", $table, $column, " = ANY (ARRAY(SELECT jsonb_array_elements_text($1)))", $after)
            }
        }
    };
    ($on:expr, $before:expr, $column:literal, $after:literal $(, lock $lock:literal)?) => {
        match $on.kind() {
            $crate::db::Kind::Sqlite => {
                concat!($before, $column, " IN (SELECT value FROM json_each($1))", $after)
            }
            $crate::db::Kind::Postgres => {
                concat!($before, $column, " = ANY (ARRAY(SELECT jsonb_array_elements_text($1)))", $after $(, $lock)?)
            }
        }
    };
}
pub(crate) use listed;

/// Locks rows in the order of their ids before a statement that writes them by a list: [`update_in_order`] for that. Of one row the
/// statement itself is the lock.
macro_rules! write_in_order {
    ($tx:expr, $table:literal, $ids:expr) => {
        if let $crate::db::Tx::Postgres(tx) = &mut *$tx
            && $ids.len() > 1
        {
            let text = concat!(
                "SELECT 1 FROM ",
                $table,
                " WHERE id = ANY (ARRAY(SELECT jsonb_array_elements_text($1))) ORDER BY id FOR NO KEY UPDATE"
            );
            sqlx::query(text).bind(sqlx::types::Json($ids)).execute(&mut **tx).await?;
        }
    };
}
pub(crate) use write_in_order;
