use basert::*;
fn main() {
    let t = std::time::Instant::now();
    let path = std::env::args().nth(1).unwrap();
    let prompt = std::env::args().nth(2).unwrap();
    let model = Model::open(&path, Options::default()).unwrap();
    eprintln!("opened {:?}", t.elapsed());
    let options = Generation { max_tokens: 100, ..Generation::default() };
    let answer = model.generate(&prompt, &options, |p| { print!("{p}"); true }).unwrap();
    println!();
    eprintln!("{} prompt {:?} answer {} {:?}", answer.prompt_tokens, answer.prompt_time, answer.tokens.len(), answer.answer_time);
}
