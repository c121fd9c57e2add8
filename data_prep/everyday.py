"""Sentences written by hand the way a newcomer types them: test only, in no training text."""

ENGLISH = """
Hi there, could you read this sentence aloud for me?
I woke up at half past six because the baby was crying.
The coffee machine in our kitchen has been leaking since Tuesday.
My grandmother keeps her old letters in a shoebox under the bed.
Did you remember to lock the back door before we left?
We took the ferry to the island and walked along the cliffs all afternoon.
Sorry, I didn't catch your name. Was it Deborah or Rebecca?
The quick brown fox jumps over the lazy dog.
Our flight was cancelled, so we slept on the floor of the airport.
Is there a pharmacy near here that stays open on Sundays?
He plays the saxophone in a jazz band every other Thursday.
Please turn the music down, the neighbours are trying to sleep.
I've just finished a book about the history of chocolate.
The dishwasher makes a strange noise whenever it drains.
Can you believe that ticket cost me eighty five dollars?
She teaches chemistry at a secondary school in Birmingham.
Let's meet outside the cinema at quarter to eight.
The wifi password is written on the back of the router.
My knee hurts when I climb the stairs.
Would you prefer a window seat or an aisle seat?
They're rebuilding the bridge, so traffic is terrible this month.
Add two teaspoons of cinnamon and stir until the mixture is smooth.
Nobody told me that the meeting had been moved to Wednesday.
What a gorgeous sunset! I wish I had brought my camera.
The kids built a snowman and gave it my favourite scarf.
I think the soup needs a little more salt and some pepper.
Jonathan promised to return the lawnmower last weekend, but he forgot.
Due to heavy rain, the football match has been postponed.
How do you spell your surname, please?
Artificial intelligence is changing the way hospitals read X rays.
We adopted a three legged cat called Pancake.
The museum is free on the first Friday of every month.
I'm allergic to peanuts, so I always read the labels.
Could we have the bill, please? We're in a bit of a hurry.
It was so foggy that we missed the turning twice.
My laptop battery barely lasts an hour these days.
The recipe calls for buttermilk, but yoghurt works just as well.
Why is the sky blue and not purple?
He apologised for shouting and made everybody a cup of tea.
The elevator is out of order, you'll have to use the stairs.
Thanks for your patience, somebody will be with you shortly.
I left my umbrella on the tram again.
Her daughter wants to become a marine biologist.
There's a spider in the bathtub, and it's enormous!
You should really get that cough looked at.
We're planning to repaint the bedroom in a warm shade of yellow.
The library charges ten cents a day for overdue books.
I can't find my glasses anywhere. Have you seen them?
The orchestra rehearses in the old gymnasium on Mondays.
He speaks fluent Portuguese but only a little Spanish.
Remember to water the tomatoes while I'm away.
The mechanic said the brakes would have to be replaced.
Shall I pick you up from the station, or will you take a taxi?
Our hotel room overlooked a noisy construction site.
My favourite season is autumn, when the leaves turn orange and red.
Do you happen to know what time the shop closes?
The vet says our puppy needs to lose some weight.
I sent you an email yesterday about the insurance.
If you press the green button twice, the screen lights up.
Good night, sleep well, and see you in the morning.
""".strip().splitlines()

CHINESE = """
你好，请帮我读一下这句话。
我昨天晚上十一点才下班，累死了。
外面下雨了，别忘了带伞。
请问，最近的地铁站在哪里？
这家餐厅的服务员特别热情。
周末我们打算去爬山，你要不要一起来？
我的手机没电了，能借我充电器吗？
孩子们在公园里放风筝。
她一边听音乐，一边做作业。
飞机晚点了两个小时，我们在机场等了很久。
祝你生日快乐，万事如意！
这道菜太辣了，我吃不了。
你的普通话说得真好，学了几年了？
医生说他需要住院观察几天。
爷爷每天早上都去河边打太极拳。
我想换一份离家近一点儿的工作。
人工智能正在改变我们的生活。
图书馆里不允许大声说话。
昨天的足球比赛真精彩！
洗衣机坏了，得找人来修。
妹妹养了一只白色的小猫。
他把护照忘在酒店的保险箱里了。
春天来了，花园里开满了郁金香。
这条裙子有没有大一号的？
如果明天不堵车，半个小时就能到。
老师让我们写一篇关于环境保护的作文。
对不起，我没听清楚，您能再说一遍吗？
我们已经三年没见面了。
冰箱里还有牛奶和鸡蛋吗？
晚安，做个好梦。
""".strip().splitlines()
LINES = {"en": ENGLISH, "zh": CHINESE}
