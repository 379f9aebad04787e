//! HTTP dates by the grammar of RFC 9110 §5.6.7, computed without a date library.

use std::time::{Duration, SystemTime};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
/// The names of the days, from the day of the Unix epoch on.
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// A point in time, in the fields of an HTTP date.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Date {
    pub(super) year: u64,
    /// From 1.
    pub(super) month: u64,
    pub(super) day: u64,
    pub(super) second_of_day: u64,
}

#[derive(Clone, Copy, Debug, arbitrary::Arbitrary)]
pub(super) enum Form {
    Imf,
    Rfc850,
    Asctime,
}

pub(super) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(super) fn month_length(year: u64, month: u64) -> u64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl Date {
    /// Returns the number of days since the Unix epoch, counted one year and one month at a time.
    fn days(self) -> u64 {
        let year_length = |year| 337 + month_length(year, 2);
        let years: u64 = (1970..self.year).map(year_length).sum();
        let months: u64 = (1..self.month)
            .map(|month| month_length(self.year, month))
            .sum();
        years + months + self.day - 1
    }

    pub(super) fn seconds(self) -> u64 {
        self.days() * 86_400 + self.second_of_day
    }

    fn day_name(self) -> &'static str {
        DAYS[(self.days() % 7) as usize]
    }

    /// Formats the date. A year in the obsolete form of RFC 850 has two digits.
    pub(super) fn format(self, form: Form) -> String {
        let Self {
            year,
            month,
            day,
            second_of_day: second,
        } = self;
        let time = format!(
            "{:02}:{:02}:{:02}",
            second / 3600,
            second / 60 % 60,
            second % 60
        );
        let month = MONTHS[month as usize - 1];
        let name = self.day_name();
        let short = &name[..3];
        match form {
            Form::Imf => format!("{short}, {day:02} {month} {year:04} {time} GMT"),
            Form::Rfc850 => format!("{name}, {day:02}-{month}-{:02} {time} GMT", year % 100),
            Form::Asctime => format!("{short} {month} {day:2} {time} {year:04}"),
        }
    }
}

/// Parses a date in any of the three forms, from the year 1970 on. Two digits of a year stand for 1970 to 2069.
///
/// Parsing finds the fields only. A text is valid if it is what the fields are formatted to. The leap second 60
/// is the second after 59.
pub(super) fn parse(text: &str) -> Option<Date> {
    let words: Vec<_> = text.split(' ').collect();
    let (form, [day, month, year], time) = match words[..] {
        [_, day, month, year, time, "GMT"] => (Form::Imf, [day, month, year], time),
        [_, date, time, "GMT"] => {
            let date: Vec<_> = date.split('-').collect();
            (Form::Rfc850, <[_; 3]>::try_from(date).ok()?, time)
        }
        [_, month, "", day, time, year] | [_, month, day, time, year] => {
            (Form::Asctime, [day, month, year], time)
        }
        _ => return None,
    };
    let number = |digits: &str| -> Option<u64> {
        let all = digits.bytes().all(|byte| byte.is_ascii_digit());
        if all { digits.parse().ok() } else { None }
    };
    let time: Vec<_> = time.split(':').map(number).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = time[..] else {
        return None;
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, mut year) = (number(day)?, number(year)?);
    if let Form::Rfc850 = form {
        year += if year < 70 { 2000 } else { 1900 };
    }
    let valid = (1970..=9999).contains(&year)
        && (1..=month_length(year, month)).contains(&day)
        && hours < 24
        && minutes < 60
        && seconds <= 60;
    let second_of_day = valid.then(|| hours * 3600 + minutes * 60 + seconds.min(59))?;
    let mut date = Date {
        year,
        month,
        day,
        second_of_day,
    };
    let mut canonical = date.format(form);
    if seconds == 60 {
        canonical = canonical.replacen(":59 ", ":60 ", 1);
        date.second_of_day += 1;
    }
    // The form of `asctime` allows a day below ten with a zero, too.
    let zero = canonical.replacen("  ", " 0", 1);
    (text == canonical || (matches!(form, Form::Asctime) && text == zero)).then_some(date)
}
